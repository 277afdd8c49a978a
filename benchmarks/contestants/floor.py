"""The floor: raw pgmq. One queue, batches of 100, NOTIFY, no states, no second queue, answers in a plain table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from pydantic_core import to_json

from benchmarks.queries import load
from benchmarks.stage.arrivals import Arrivals, arrivals
from benchmarks.stage.child import Child, child
from benchmarks.stage.prompts import prompt
from benchmarks.stage.provider_server import MODEL, ProviderServer
from pgnexus.providers.http import HttpClient

BATCH = 100
_STORES = 4  # connections that store; more gain nothing on the machines we saw
HEADERS = {"Content-Type": "application/json", "User-Agent": "pgnexus"}

Connection = psycopg.AsyncConnection[Any]


async def _connect(url: str) -> Connection:
    return await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=namedtuple_row)


class FloorWorker:
    """Takes a batch, makes its calls at once, stores the answers and deletes the messages in one transaction."""

    def __init__(self, url: str, chat_url: str, concurrency: int) -> None:
        self._url = url
        self._chat_url = chat_url
        self._concurrency = concurrency
        self._http = HttpClient()
        self._woken = asyncio.Event()
        self._in_flight = 0
        self._batches: set[asyncio.Task[None]] = set()
        self._stores: asyncio.Queue[Connection] = asyncio.Queue()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            taking, listening, *stores = [
                await stack.enter_async_context(await _connect(self._url)) for _ in range(2 + _STORES)
            ]
            for connection in stores:
                self._stores.put_nowait(connection)
            await listening.execute("LISTEN benchmark_jobs")
            tasks = [asyncio.create_task(self._listen(listening)), asyncio.create_task(self._take(taking))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait([*tasks, *self._batches])
                await self._http.release(self)

    async def _listen(self, connection: Connection) -> None:
        async for _ in connection.notifies():
            self._woken.set()

    async def _take(self, connection: Connection) -> None:
        while True:
            self._woken.clear()
            limit = min(BATCH, self._concurrency - self._in_flight)
            rows: list[Any] = []
            if limit > 0:
                cursor = await connection.execute(load("floor_take"), {"limit": limit})
                rows = await cursor.fetchall()
            if rows:
                self._in_flight += len(rows)
                task = asyncio.create_task(self._do(rows))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)
            if len(rows) < limit or limit <= 0:
                await self._woken.wait()

    async def _do(self, rows: list[Any]) -> None:
        answers = await asyncio.gather(*(self._call(row.job) for row in rows))
        connection = await self._stores.get()
        try:
            await connection.execute(
                load("floor_store"), {"ids": [row.msg_id for row in rows], "answers": answers}
            )
        finally:
            self._stores.put_nowait(connection)
        self._in_flight -= len(rows)
        self._woken.set()

    async def _call(self, job: str) -> str:
        session = self._http.session(self)
        async with session.post(self._chat_url, data=job.encode(), headers=HEADERS) as response:
            return (await response.read()).decode()


def job(number: int) -> str:
    """The body of the call itself: what is taken is sent on as it is."""
    messages = [{"role": "user", "content": prompt(number)}]
    return to_json({"model": MODEL, "messages": messages}).decode()


class FloorDriver:
    """The other end: sends jobs, and waits for the answer of one."""

    def __init__(self, connection: Connection, ended: Arrivals | None) -> None:
        self._connection = connection
        self.ended = ended

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), BATCH):
            jobs = [job(number) for number in numbers[start : start + BATCH]]
            await self._connection.execute(load("floor_send"), {"jobs": jobs})

    async def enqueue_each(self, numbers: Sequence[int], writers: int) -> None:
        """From one connection: the floor has no one-by-one door of its own."""
        for number in numbers:
            await self._connection.execute(load("floor_send"), {"jobs": [job(number)]})

    async def call(self, number: int) -> float:
        """Seconds until the answer is in hand."""
        start = time.perf_counter()
        cursor = await self._connection.execute(load("floor_send"), {"jobs": [job(number)]})
        [sent] = await cursor.fetchall()
        answer = None
        while answer is None:  # notifications stay with this connection until they are asked for
            async for _ in self._connection.notifies(stop_after=1, timeout=10):
                pass
            cursor = await self._connection.execute(load("floor_answer"), {"id": sent.ids[0]})
            answer = await cursor.fetchone()
        return time.perf_counter() - start

    async def stored(self) -> int:
        [row] = await (await self._connection.execute(load("floor_count"))).fetchall()
        return int(row.count)


class Floor:
    """Raw pgmq as a contestant."""

    name = "raw pgmq"

    def __init__(self, url: str, provider: ProviderServer, concurrency: int = 1000) -> None:
        self._url = url
        self._provider = provider
        self._concurrency = concurrency

    async def prepare(self) -> None:
        async with await _connect(self._url) as connection:
            await connection.execute(load("floor_setup"))

    @asynccontextmanager
    async def bulk(self) -> AsyncIterator[tuple[Child, FloorDriver]]:
        """One worker process, and a driver that counts the ends."""
        async with (
            self._worker() as worker,
            arrivals(self._url, "benchmark_done") as ended,
            await _connect(self._url) as connection,
        ):
            yield worker, FloorDriver(connection, ended)

    @asynccontextmanager
    async def alone(self, *, together: bool) -> AsyncIterator[FloorDriver]:
        """A driver that waits for each answer, in the worker's process or in another."""
        worker = FloorWorker(self._url, self._provider.chat_url, self._concurrency).running()
        async with worker if together else self._worker(), await _connect(self._url) as connection:
            await connection.execute("LISTEN benchmark_done")
            yield FloorDriver(connection, None)

    def _worker(self) -> Any:
        return child(
            "benchmarks.contestants.worker", "floor", self._url, self._provider.base_url,
            "--concurrency", self._concurrency,
        )  # fmt: skip
