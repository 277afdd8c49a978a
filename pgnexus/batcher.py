"""T1 and T3 of a request: many callers, one statement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pgnexus.db.connection import is_data_fault

Item = TypeVar("Item")
Out = TypeVar("Out")


class Batcher(Generic[Item, Out]):
    """Gathers what is submitted while a flush runs into the next one.

    The first item goes at once, so an idle system adds no wait; a busy one fills its batches by itself.
    ``flush`` gets up to ``max_batch`` items and returns one outcome for each, in order; an outcome that
    is an exception is raised to its submitter. When a flush of several items raises a fault of the data,
    it is halved until the culprit stands alone; other faults, such as a lost connection, go to all.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Out | Exception]]],
        *,
        max_batch: int = 500,
        concurrency: int = 1,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._concurrency = concurrency
        self._waiting: deque[tuple[Item, asyncio.Future[Out]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False

    async def submit(self, item: Item) -> Out:
        """The outcome of ``item``; cancelled before its flush began, the item is not flushed."""
        if self._closed:
            raise RuntimeError("this Batcher is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Out] = loop.create_future()
        self._waiting.append((item, future))
        if not self._scheduled and len(self._running) < self._concurrency:
            self._scheduled = True
            loop.call_soon(self._start)  # what is submitted in this turn of the loop goes together
        return await future

    async def flushed(self) -> None:
        """Wait for the flushes that run now; an item whose submitter is gone is in one of them or in none."""
        if self._running:
            await asyncio.wait(tuple(self._running))

    async def close(self) -> None:
        """Refuse new items and wait until all that were submitted have their outcome."""
        self._closed = True
        while self._waiting or self._running:
            if not self._running:
                self._start()
            await self.flushed()  # none runs where all that waited were cancelled

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._running) < self._concurrency:
            batch: list[tuple[Item, asyncio.Future[Out]]] = []
            while self._waiting and len(batch) < self._max_batch:
                entry = self._waiting.popleft()
                if not entry[1].done():
                    batch.append(entry)
            if batch:
                task = asyncio.create_task(self._run(batch))
                self._running.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Out]]]) -> None:
        try:
            outcomes = await self._flush([item for item, _ in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"a flush of {len(batch)} items returned {len(outcomes)} outcomes")
        except Exception as error:
            if len(batch) > 1 and is_data_fault(error):
                middle = len(batch) // 2
                await self._run(batch[:middle])
                await self._run(batch[middle:])
                return
            outcomes = [error] * len(batch)
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():  # its submitter was cancelled
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
