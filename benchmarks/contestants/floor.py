"""The floor: raw pgmq. One queue, batches of 100, NOTIFY, no states, no second queue, answers in a plain table."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pydantic_core import to_json

from benchmarks.contestants.floor_worker import BATCH, Connection, FloorWorker, connect
from benchmarks.queries import load
from benchmarks.stage.arrivals import Arrivals, arrivals
from benchmarks.stage.child import Crew, crew
from benchmarks.stage.prompts import prompt
from benchmarks.stage.provider_server import MODEL, ProviderServer
from benchmarks.stage.writers import share_out

DONE_CHANNEL = "benchmark_done"
_CONNECTIONS = 8  # of a caller, as many as pgnexus has


def job(number: int) -> str:
    """The body of the call itself: what is taken is sent on as it is."""
    messages = [{"role": "user", "content": prompt(number)}]
    return to_json({"model": MODEL, "messages": messages}).decode()


class FloorDriver:
    """The other end: sends jobs, and reads an answer when its end is told."""

    def __init__(self, connections: Sequence[Connection], ended: Arrivals) -> None:
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in connections:
            self._free.put_nowait(connection)
        self.ended = ended
        self.pids = [os.getpid()]

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), BATCH):
            await self._send([job(number) for number in numbers[start : start + BATCH]])

    async def enqueue(self, number: int) -> None:
        await self._send([job(number)])

    async def enqueue_each(self, numbers: Sequence[int], writers: int) -> None:
        await share_out(numbers, writers, self.enqueue)

    async def call(self, number: int) -> float:
        """Seconds until the answer is in hand."""
        start = time.perf_counter()
        [sent] = await self._send([job(number)])
        await self.ended.named(str(sent))
        [_] = await self._query("floor_answer", {"id": sent})
        return time.perf_counter() - start

    async def stored(self) -> int:
        [row] = await self._query("floor_count")
        return int(row.count)

    async def waiting(self) -> int:
        """How many are on the queue."""
        [row] = await self._query("floor_waiting")
        return int(row.count)

    async def _send(self, jobs: list[str]) -> list[int]:
        [row] = await self._query("floor_send", {"jobs": jobs})
        return list(row.ids)

    async def _query(self, name: str, params: dict[str, Any] | None = None) -> list[Any]:
        connection = await self._free.get()
        try:
            return await (await connection.execute(load(name), params)).fetchall()
        finally:
            self._free.put_nowait(connection)


class Floor:
    """Raw pgmq as a contestant."""

    name = "raw pgmq"

    def __init__(self, url: str, provider: ProviderServer, concurrency: int = 1000) -> None:
        self._url = url
        self._provider = provider
        self._concurrency = concurrency

    async def prepare(self) -> None:
        async with await connect(self._url) as connection:
            await connection.execute(load("floor_setup"))

    @asynccontextmanager
    async def bulk(self, workers: int = 1) -> AsyncIterator[tuple[Crew, FloorDriver]]:
        """Worker processes, and a driver that counts the ends."""
        async with self._workers(workers) as worker, self.driver() as driver:
            yield worker, driver

    @asynccontextmanager
    async def alone(self, *, together: bool) -> AsyncIterator[FloorDriver]:
        """A driver that waits for each answer, in the worker's process or in another."""
        own = FloorWorker(self._url, self._provider.chat_url, self._concurrency).running()
        async with own if together else self._workers(1), self.driver() as driver:
            yield driver

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[FloorDriver]:
        """A caller, without any worker."""
        async with AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(await connect(self._url)) for _ in range(_CONNECTIONS)
            ]
            ended = await stack.enter_async_context(arrivals(self._url, DONE_CHANNEL))
            yield FloorDriver(connections, ended)

    def _workers(self, count: int) -> Any:
        return crew(
            count, "benchmarks.contestants.worker", "floor", self._url, self._provider.base_url,
            "--concurrency", self._concurrency,
        )  # fmt: skip
