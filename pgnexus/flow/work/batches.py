"""Behind every task: what became of it, many in one statement, said again until the database has taken it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import psycopg

from pgnexus.backoff import backoff
from pgnexus.db.connection import is_data_fault
from pgnexus.errors import DatabaseUnavailable
from pgnexus.portions import LARGEST_STATEMENT
from pgnexus.printable import one_line

log = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_BATCH = 500
_WORTH_A_SECOND = 100  # items for which another call is made beside the one under way


class Outbox(Generic[Item]):
    """Gathers what is put while a call is under way into the next one; nobody waits for a single item.

    ``store`` gets up to `MAX_BATCH` items, fewer when they are large by ``size`` (in characters). When it raises
    a fault of the data or of code, the batch is halved until the culprit stands alone, which goes to ``refuse``.
    After one of the database it is called again with the same items. Another call begins beside the one under way
    when there is enough for it, so that the database works while this process does.
    """

    def __init__(
        self,
        name: str,
        store: Callable[[list[Item]], Awaitable[None]],
        refuse: Callable[[Item, Exception], None],
        *,
        size: Callable[[Item], int] = lambda _: 1,
        concurrency: int = 2,
    ) -> None:
        self._name = name
        self._store = store
        self._refuse = refuse
        self._size = size
        self._concurrency = concurrency
        self._waiting: deque[Item] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def put(self, item: Item) -> None:
        """Have ``item`` stored soon."""
        self._waiting.append(item)
        if not self._scheduled and self._may_start():
            self._scheduled = True
            # what ends in this turn of the loop goes together
            asyncio.get_running_loop().call_soon(self._start)

    def abandon(self) -> None:
        """Store nothing more."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()

    def _may_start(self) -> bool:
        running = len(self._running)
        return not running or (running < self._concurrency and len(self._waiting) >= _WORTH_A_SECOND)

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and self._may_start():
            task = asyncio.create_task(self._send(self._batch()), name=self._name)
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _batch(self) -> list[Item]:
        batch: list[Item] = []
        total = 0
        while self._waiting and len(batch) < MAX_BATCH:
            total += self._size(self._waiting[0])
            if batch and total > LARGEST_STATEMENT:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: failed in our own code", self._name, exc_info=error)
        self._start()

    async def _send(self, batch: list[Item]) -> None:
        for tries in range(1, 1_000_000):
            try:
                return await self._store(batch)
            except DatabaseUnavailable:
                pass  # the loops speak of it; fences make it safe to say it all again
            except Exception as error:
                if is_data_fault(error) or not isinstance(error, psycopg.Error):
                    return await self._halve(batch, error)
                log.warning(
                    "%s: %d not stored yet: %s: %s",
                    self._name,
                    len(batch),
                    type(error).__name__,
                    one_line(error),
                )
            await asyncio.sleep(backoff(tries))
        raise AssertionError("unreachable")

    async def _halve(self, batch: list[Item], error: Exception) -> None:
        if len(batch) == 1:
            return self._refuse(batch[0], error)
        middle = len(batch) // 2
        await self._send(batch[:middle])
        await self._send(batch[middle:])
        return None
