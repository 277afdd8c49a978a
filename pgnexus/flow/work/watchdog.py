"""Beside the event loop: a thread that sees when a handler holds it, and says which.

A handler that blocks the loop stops everything in this process, but not its signs of life, which come from a
thread. Until the step's own timeout that is right: the work goes on. After it the lease is let go, so that
others take the work of this process.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

from pgnexus.flow.registry import Registry
from pgnexus.flow.work.claims import Held, Holdings

log = logging.getLogger(__name__)


class Watchdog:
    """Asks the loop for an answer now and then, as long as something is held."""

    def __init__(self, holdings: Holdings, registry: Registry, *, patience: float) -> None:
        self._holdings = holdings
        self._registry = registry
        self._patience = patience
        self._stopping = threading.Event()
        self._answered = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch the running event loop, which is the one of the calling thread."""
        loop, thread_id = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(
            target=self._watch, args=(loop, thread_id), name="pgnexus watchdog", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        while not self._stopping.wait(self._patience / 2):
            if not self._holdings.held:
                continue
            asked = time.monotonic()
            self._answered.clear()
            try:
                loop.call_soon_threadsafe(self._answered.set)
                if not self._answered.wait(self._patience):
                    self._blocked(loop, thread_id, asked)
            except RuntimeError:  # the event loop is closed: the process is ending
                return

    def _blocked(self, loop: asyncio.AbstractEventLoop, thread_id: int, since: float) -> None:
        held = self._holder(loop)
        who = f"{held}: its handler" if held is not None else "something that is no handler"
        log.error(
            "%s has held the event loop for %g s; use asyncio.to_thread for what blocks. It is in %s",
            who,
            self._patience,
            _where(thread_id),
        )
        limit = held.deadline if held is not None else since + self._patience
        while not self._answered.wait(max(0.05, min(limit - time.monotonic(), 1.0))):
            if self._stopping.is_set():
                return
            if held is not None and time.monotonic() > limit:
                log.error("%s is past its timeout: others are given what this process holds", who)
                self._registry.let_go()
                self._answered.wait()
        self._registry.hold_on()

    def _holder(self, loop: asyncio.AbstractEventLoop) -> Held | None:
        task = asyncio.current_task(loop)
        try:
            return next((held for held in self._holdings.held if held.task is task is not None), None)
        except RuntimeError:  # it goes on just now
            return None


def _where(thread_id: int) -> str:
    """The innermost line of the thread's stack, and the line of it that is not of a library."""
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return "no Python code"
    stack = traceback.extract_stack(frame)
    own = [
        line for line in stack if "site-packages" not in line.filename and "/lib/python" not in line.filename
    ]
    line = (own or stack)[-1]
    return f"{line.filename}:{line.lineno} ({line.name}: {line.line})"
