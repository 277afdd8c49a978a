"""A peer as a contestant: its worker and its caller are programs in its own environment, driven line by line."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.contestants.contestant import Ended
from benchmarks.peers.environments import environment
from benchmarks.peers.rows import Peer
from benchmarks.stage.arrivals import arrivals
from benchmarks.stage.child import Child, child
from benchmarks.stage.provider_server import MODEL, ProviderServer

_SQL = Path(__file__).parent / "sql"
_MANY = 1000  # enqueued at once
_CHANNEL = "peer_done"
_EXACT = 0.01  # the count is asked for so often that the clock is late by at most this share


class Asked:
    """The clock's end for peers that tell nobody: the count of stored answers, asked for by one connection."""

    def __init__(self, driver: PeerDriver) -> None:
        self._driver = driver

    async def reached(self, count: int, timeout: float) -> float:
        """The moment, by time.perf_counter(), at which ``count`` requests had ended."""
        start = time.perf_counter()
        while (found := await self._driver.stored()) < count:
            passed = time.perf_counter() - start
            if passed > timeout:
                raise RuntimeError(f"{found} of {count} ended within {timeout:g} s")
            await asyncio.sleep(max(0.005, passed * _EXACT))
        return time.perf_counter()


class PeerDriver:
    """The other end: tells the caller's program what to enqueue, and asks the database what is stored."""

    def __init__(self, caller: Child, connection: psycopg.AsyncConnection[Any], peer: Peer) -> None:
        self._caller = caller
        self._connection = connection
        self._count = (_SQL / f"{peer.count}.sql").read_bytes()
        self.ended: Ended = Asked(self)
        self.pids = [os.getpid(), caller.pid]

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._order("enqueue_many", numbers, size=_MANY)

    async def enqueue_each(self, numbers: Sequence[int], writers: int) -> None:
        """One by one, from so many coroutines."""
        await self._order("enqueue_each", numbers, writers=writers)

    async def call(self, number: int) -> float:
        """Seconds until the answer is in hand."""
        return await self._order("call", range(number, number + 1))

    async def stored(self) -> int:
        [row] = await (await self._connection.execute(self._count)).fetchall()
        return int(row[0])

    async def _order(self, do: str, numbers: Sequence[int], **how: int) -> float:
        self._caller.tell(json.dumps({"do": do, "start": numbers[0], "stop": numbers[-1] + 1, **how}))
        return float(await self._caller.hear())


class PeerEntrant:
    """One peer in one database."""

    def __init__(self, peer: Peer, url: str, provider: ProviderServer, concurrency: int = 1000) -> None:
        self._peer = peer
        self._url = url
        self._provider = provider
        self._concurrency = concurrency
        self.name = peer.name

    async def prepare(self) -> None:
        """Install the peer's schema, and before that the peer. Raises PeerMissing."""
        await environment(self._peer)
        async with self._program("prepare"):
            pass

    @asynccontextmanager
    async def bulk(self) -> AsyncIterator[tuple[Child, PeerDriver]]:
        """One worker process, one caller process, and a driver that counts the ends."""
        async with self._program("worker") as worker, self._driver() as driver:
            yield worker, driver

    @asynccontextmanager
    async def alone(self, *, together: bool) -> AsyncIterator[PeerDriver]:
        """A driver that waits for each answer; a peer's worker is always a process of its own."""
        if together:
            raise ValueError(f"{self.name} is measured in two processes only")
        async with self._program("worker"), self._driver() as driver:
            yield driver

    @asynccontextmanager
    async def _driver(self) -> AsyncIterator[PeerDriver]:
        async with AsyncExitStack() as stack:
            connecting = psycopg.AsyncConnection.connect(self._url, autocommit=True)
            connection = await stack.enter_async_context(await connecting)
            driver = PeerDriver(
                await stack.enter_async_context(self._program("caller")), connection, self._peer
            )
            if self._peer.told:
                driver.ended = await stack.enter_async_context(arrivals(self._url, _CHANNEL))
            yield driver

    @asynccontextmanager
    async def _program(self, role: str) -> AsyncIterator[Child]:
        async with child(
            f"benchmarks.peers.programs.{self._peer.program}", role, as_url(self._url), self._provider.chat_url,
            MODEL, "--concurrency", self._concurrency, python=await environment(self._peer),
        ) as process:  # fmt: skip
            yield process


def as_url(conninfo: str) -> str:
    """The same as a URL, which is what most peers want; a socket's directory goes into its query."""
    parts = {
        name: quote(str(value), safe="")
        for name, value in conninfo_to_dict(conninfo).items()
        if value is not None
    }
    user, password = parts.get("user", ""), parts.get("password")
    owner = f"{user}:{password}@" if password else f"{user}@"
    rest = {name: parts[name] for name in parts if name not in ("user", "password", "dbname")}
    query = "&".join(f"{name}={value}" for name, value in rest.items())
    return f"postgresql://{owner}/{parts.get('dbname', '')}?{query}"


def contestant(peer: Peer) -> partial[PeerEntrant]:
    """Called with a database's URL and the vendor it makes the entrant, as the other contestants' classes do."""
    return partial(PeerEntrant, peer)
