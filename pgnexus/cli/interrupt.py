"""Under the verbs that run for long: Ctrl-C and SIGTERM as something to wait for."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pgnexus.cli import exits

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """The first signal ends the work in good order, the second hurries that, the third ends the process."""

    def __init__(self) -> None:
        self._came = asyncio.Event()
        self._count = 0
        self._hurry: Callable[[], None] = lambda: None

    @classmethod
    @contextmanager
    def handled(cls) -> Iterator[Interrupt]:
        """Take the signals while the block runs."""
        loop = asyncio.get_running_loop()
        interrupt = cls()
        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupt._signal)
        try:
            yield interrupt
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def on_second(self, hurry: Callable[[], None]) -> None:
        """What the second signal does."""
        self._hurry = hurry

    @property
    def came(self) -> bool:
        return self._came.is_set()

    async def wait(self) -> None:
        await self._came.wait()

    async def unless(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's value; None when a signal came first, and the work is cancelled."""
        task = asyncio.create_task(work)
        waiting = asyncio.create_task(self.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            for one in (task, waiting):
                one.cancel()
            await asyncio.wait({task, waiting})

    def _signal(self) -> None:
        self._count += 1
        if self._count == 1:
            self._came.set()
        elif self._count == 2:
            self._hurry()
        else:
            os._exit(exits.INTERRUPTED)
