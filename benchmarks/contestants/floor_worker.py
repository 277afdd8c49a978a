"""The floor's worker: batches of 100 off one queue, answers stored and messages deleted in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from benchmarks.queries import load
from pgnexus.providers.http import HttpClient

BATCH = 100
_STORES = 4  # connections that store; more gain nothing on the machines we saw
HEADERS = {"Content-Type": "application/json", "User-Agent": "pgnexus"}

Connection = psycopg.AsyncConnection[Any]


async def connect(url: str) -> Connection:
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
                await stack.enter_async_context(await connect(self._url)) for _ in range(2 + _STORES)
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
