"""What every peer's program shares: how it is told what to do, the call itself, and where answers are kept.

It runs in the peer's environment, so it needs nothing but aiohttp and psycopg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import psycopg

from benchmarks.stage.prompts import prompt

_SQL = Path(__file__).parent.parent / "sql"
_HEADERS = {"Content-Type": "application/json", "User-Agent": "pgnexus"}
_MOST = 500  # answers stored at once: a NOTIFY's payload has to hold their numbers
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Task:
    """What a program is started with."""

    url: str
    chat_url: str
    model: str
    concurrency: int

    def body(self, number: int) -> str:
        """The request of that number, as it goes to the vendor."""
        messages = [{"role": "user", "content": prompt(number)}]
        return json.dumps({"model": self.model, "messages": messages}, separators=(",", ":"))


class Caller(Protocol):
    """The application's side of a peer."""

    async def enqueue_many(self, numbers: Sequence[int]) -> None: ...

    async def enqueue(self, number: int) -> None: ...

    async def call(self, number: int) -> str:
        """Enqueue one request and wait for its stored answer."""
        ...


class Vendor:
    """The call, with the session and headers that pgnexus and raw pgmq use."""

    def __init__(self, task: Task) -> None:
        self._chat_url = task.chat_url
        self._most = task.concurrency
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, body: str) -> str:
        if self._session is None:  # made in the loop that makes the calls, which is not always the main one
            connector = aiohttp.TCPConnector(limit=self._most)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        async with self._session.post(self._chat_url, data=body.encode(), headers=_HEADERS) as response:
            return (await response.read()).decode()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class Answers:
    """A table for peers that keep no results: what ends while a commit runs goes into the next one together.

    That is more than their documents do, in their favour: an insert a job would cost each of them a commit.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._waiting: list[tuple[int, str, asyncio.Future[None]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, number: int, answer: str) -> None:
        """Return when the answer is committed."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((number, answer, stored))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store())
        await stored

    async def _store(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            numbers, answers = [number for number, _, _ in batch], [answer for _, answer, _ in batch]
            try:
                await self._connection.execute(
                    query("answers_store"), {"numbers": numbers, "answers": answers}
                )
            except psycopg.Error as error:
                for _, _, stored in batch:
                    stored.set_exception(error)
            else:
                for _, _, stored in batch:
                    stored.set_result(None)


class Waiting:
    """The caller's side of that table: woken by its NOTIFY, then it reads the answer."""

    def __init__(self, reading: psycopg.AsyncConnection[Any]) -> None:
        self._reading = reading
        self._waiters: dict[str, asyncio.Event] = {}

    async def answer(self, number: int, enqueue: Callable[[], Awaitable[Any]]) -> str:
        self._waiters[str(number)] = done = asyncio.Event()
        await enqueue()
        async with asyncio.timeout(_PATIENCE):
            await done.wait()
        [row] = await (await self._reading.execute(query("answers_get"), {"number": number})).fetchall()
        return str(row[0])

    def wake(self, payload: str) -> None:
        for number in payload.split(","):
            if waiter := self._waiters.pop(number, None):
                waiter.set()


def query(name: str) -> bytes:
    """The text of one file of peers/sql."""
    return (_SQL / f"{name}.sql").read_bytes()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def storing(task: Task) -> AsyncIterator[tuple[Vendor, Answers]]:
    """What a worker's handler needs: the call, and the table for its answer."""
    vendor = Vendor(task)
    async with connected(task.url) as connection:
        try:
            yield vendor, Answers(connection)
        finally:
            await vendor.close()


@asynccontextmanager
async def waiting(task: Task) -> AsyncIterator[Waiting]:
    """What a caller needs to wait for answers in that table."""
    async with connected(task.url) as listening, connected(task.url) as reading:
        await listening.execute(query("answers_listen"))
        answers = Waiting(reading)

        async def listen() -> None:
            async for notify in listening.notifies():
                answers.wake(notify.payload)

        listener = asyncio.create_task(listen())
        try:
            yield answers
        finally:
            listener.cancel()
            await asyncio.wait([listener])


async def make_answers(task: Task) -> None:
    async with connected(task.url) as connection:
        await connection.execute(query("answers_setup"))


class Program(Protocol):
    """What each peer's module has."""

    async def prepare(self, task: Task) -> None: ...

    def worker(self, task: Task) -> AbstractAsyncContextManager[None]: ...

    def caller(self, task: Task) -> AbstractAsyncContextManager[Caller]: ...


async def play(program: Program, role: str, task: Task) -> None:
    """Do one role until standard input ends: say "ready", and answer each order with a line."""
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    if role == "prepare":
        await program.prepare(task)
        print("ready", flush=True)
    elif role == "worker":
        async with program.worker(task):
            print("ready", flush=True)
            await orders.read()
    else:
        async with program.caller(task) as caller:
            print("ready", flush=True)
            async for line in orders:
                print(await _obey(caller, json.loads(line)), flush=True)


async def _obey(caller: Caller, order: dict[str, Any]) -> float:
    """Seconds that it took."""
    numbers, start = range(order["start"], order["stop"]), time.perf_counter()
    match order["do"]:
        case "enqueue_many":
            for first in range(numbers.start, numbers.stop, order["size"]):
                await caller.enqueue_many(range(first, min(numbers.stop, first + order["size"])))
        case "enqueue_each":
            left = iter(numbers)

            async def writer() -> None:
                for number in left:
                    await caller.enqueue(number)

            await asyncio.gather(*(writer() for _ in range(order["writers"])))
        case "call":
            for number in numbers:
                if "choices" not in await caller.call(number):
                    raise RuntimeError(f"what is stored of request {number} is not its answer")
    return time.perf_counter() - start


def arguments() -> tuple[str, Task]:
    """The role and the task that a program was started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["prepare", "worker", "caller"])
    parser.add_argument("url")
    parser.add_argument("chat_url")
    parser.add_argument("model")
    parser.add_argument("--concurrency", type=int, default=1000)
    given = parser.parse_args()
    return given.role, Task(given.url, given.chat_url, given.model, given.concurrency)
