"""The clock's end: requests counted as their ends are told by NOTIFY, which comes after the commit.

So nobody polls while the clock runs. The ids are a set: told twice, a request counts once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql


class Arrivals:
    """The ids that were named on one channel."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._wanted = 0
        self._reached: asyncio.Future[float] | None = None
        self._waiters: dict[str, asyncio.Future[None]] = {}

    def add(self, payload: str) -> None:
        told = payload.split(",")
        self._ids.update(told)
        if self._waiters:
            for one in told:
                if (waiter := self._waiters.pop(one, None)) is not None and not waiter.done():
                    waiter.set_result(None)
        if self._reached is not None and len(self._ids) >= self._wanted and not self._reached.done():
            self._reached.set_result(time.perf_counter())

    @property
    def count(self) -> int:
        """How many have ended."""
        return len(self._ids)

    async def named(self, one: str) -> None:
        """Wait until this one has ended."""
        if one not in self._ids:
            await self._waiters.setdefault(one, asyncio.get_running_loop().create_future())

    async def reached(self, count: int, timeout: float) -> float:
        """The moment, by time.perf_counter(), at which ``count`` requests had ended."""
        self._wanted, self._reached = count, asyncio.get_running_loop().create_future()
        if len(self._ids) >= count:
            return time.perf_counter()
        try:
            async with asyncio.timeout(timeout):
                return await self._reached
        except TimeoutError:
            raise RuntimeError(f"{len(self._ids)} of {count} ended within {timeout:g} s") from None


@asynccontextmanager
async def arrivals(url: str, channel: str) -> AsyncIterator[Arrivals]:
    """Count what is named on ``channel`` from now on."""
    counted = Arrivals()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

        async def listen() -> None:
            async for notify in connection.notifies():
                counted.add(notify.payload)

        task = asyncio.create_task(listen())
        try:
            yield counted
        finally:
            task.cancel()
            await asyncio.wait([task])
