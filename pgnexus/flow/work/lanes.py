"""Between claim and outcome: handlers run in asyncio tasks, of which those that never wait share one.

A task for each of ten thousand small handlers would cost as much as the handlers. So a lane, which is one
task, runs one handler after the other; when a handler waits for something, another lane goes on with the next.
Each handler is alone in its task while it runs, so that timeouts and cancellation are its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context

from pgnexus.flow.work.claims import Held

log = logging.getLogger(__name__)

_SLICE = 0.005  # seconds after which a lane lets others run
_MOST_AT_ONCE = 64


class Lanes:
    """Runs ``run(held)`` for everything that is put, in order; ``run`` raises nothing."""

    def __init__(self, run: Callable[[Held], Awaitable[None]]) -> None:
        self._run = run
        self._ready: deque[Held] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._context: Context = copy_context()
        self._watching = False
        self._turn = 0  # of the event loop, as far as it matters here
        self._yielding = 0  # lanes that wait for nothing but their turn
        self._burst = 1

    def put(self, held: list[Held]) -> None:
        """Run these as soon as it is their turn."""
        self._ready.extend(held)
        if self._ready and not self._yielding:
            self._open(1)

    def take_back(self) -> list[Held]:
        """Those that were not begun."""
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def _open(self, count: int) -> None:
        for _ in range(min(count, len(self._ready))):
            self._yielding += 1  # until its first turn
            lane = asyncio.create_task(self._lane(), name="flow lane", context=self._context.copy())
            self._lanes.add(lane)
            lane.add_done_callback(self._ended)

    def _ended(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        if not lane.cancelled() and (error := lane.exception()) is not None:
            log.error("a lane failed in our own code", exc_info=error)
        if self._ready and not self._yielding:
            self._open(1)

    async def _lane(self) -> None:
        self._yielding -= 1
        task = asyncio.current_task()
        assert task is not None
        began = time.monotonic()
        while self._ready:
            held = self._ready.popleft()
            held.begin(task)
            self._watch()
            turn = self._turn
            await self._run(held)
            while task.cancelling():
                task.uncancel()
            if turn == self._turn:
                self._burst = 1
            if copy_context() != self._context:
                return  # the handler left something in its context that is none of the next one's business
            if time.monotonic() - began > _SLICE:
                self._yielding += 1
                await asyncio.sleep(0)
                self._yielding -= 1
                began = time.monotonic()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """The loop turns, so every lane waits: for its turn, or in a handler; then others go on."""
        self._watching = False
        self._turn += 1
        if self._ready and not self._yielding:
            self._open(self._burst)
            self._burst = min(_MOST_AT_ONCE, self._burst * 2)
