"""What is measured: pgnexus with its default settings, by the same door that its users take."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from benchmarks.queries import load
from benchmarks.stage.arrivals import Arrivals, arrivals
from benchmarks.stage.child import Crew, crew
from benchmarks.stage.prompts import prompt
from benchmarks.stage.provider_server import MODEL, ProviderServer
from benchmarks.stage.writers import share_out
from pgnexus.app import App
from pgnexus.caller.service import LLMService
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.messages import DONE_CHANNEL
from pgnexus.settings import Settings

_MANY = 1000


def settings_for(url: str, base_url: str, concurrency: int = 1000) -> Settings:
    """The defaults, with the stub server as the provider of everything."""
    stub = {"base_url": base_url, "needs_key": False, "models": [MODEL]}
    return Settings.load(
        database_url=url,
        concurrency=concurrency,
        default_provider="stub",
        providers={"stub": stub},
        local_model=False,
    )


class SystemDriver:
    """A caller of pgnexus."""

    def __init__(self, service: LLMService, url: str, ended: Arrivals | None) -> None:
        self.service = service
        self._url = url
        self.ended = ended
        self.pids = [os.getpid()]

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _MANY):
            part = [{"messages": prompt(number)} for number in numbers[start : start + _MANY]]
            await self.service.enqueue_many(part, complexity="simple")

    async def enqueue(self, number: int, connection: Any = None) -> None:
        await self.service.enqueue("simple", prompt(number), connection=connection)

    async def enqueue_each(self, numbers: Sequence[int], writers: int) -> None:
        await share_out(numbers, writers, self.enqueue)

    async def call(self, number: int) -> float:
        """Seconds until the answer is in hand."""
        start = time.perf_counter()
        await self.service.call("simple", prompt(number))
        return time.perf_counter() - start

    async def stored(self) -> int:
        return await self._count("system_count")

    async def done(self) -> int:
        """How many answers are committed, by the nexus side at least."""
        return await self._count("system_done")

    async def waiting(self) -> int:
        """How many are stored and on the lane."""
        return await self._count("system_waiting")

    async def _count(self, name: str) -> int:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            row = await (await connection.execute(load(name))).fetchone()
            assert row is not None
            return int(row[0])


class System:
    """pgnexus as a contestant."""

    name = "pgnexus"

    def __init__(self, url: str, provider: ProviderServer, concurrency: int = 1000) -> None:
        self._url = url
        self._provider = provider
        self._settings = settings_for(url, provider.base_url, concurrency)

    async def prepare(self) -> None:
        """Its schema is there already."""

    @asynccontextmanager
    async def bulk(self, workers: int = 1) -> AsyncIterator[tuple[Crew, SystemDriver]]:
        """Worker processes (nexus and poller each), and a driver that only enqueues and counts the ends."""
        async with self.workers("both", workers) as worker, self.driver() as driver:
            yield worker, driver

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[SystemDriver]:
        """A caller, without any worker."""
        settings, url = self._settings, self._url
        async with arrivals(url, DONE_CHANNEL) as ended:
            db = await Database.open(url, pool_size=settings.pool_size)
            notifier, listener = Notifier(db), Listener(url)
            service = LLMService(db, listener, notifier, settings, poller=False)
            await service.start()
            try:
                yield SystemDriver(service, url, ended)
            finally:
                await service.stop()
                await notifier.close()
                await db.close()

    @asynccontextmanager
    async def alone(self, *, together: bool) -> AsyncIterator[SystemDriver]:
        """A driver that waits for each answer; the nexus side in its process, or in another."""
        app = App(self._settings, nexus=together)
        if together:
            async with _running(app):
                yield SystemDriver(app.service, self._url, None)
        else:
            async with self.workers("nexus", 1), _running(app):
                yield SystemDriver(app.service, self._url, None)

    def workers(self, sides: str, count: int) -> Any:
        return crew(
            count, "benchmarks.contestants.worker", sides, self._url, self._provider.base_url,
            "--concurrency", self._settings.concurrency,
        )  # fmt: skip


@asynccontextmanager
async def _running(app: App) -> AsyncIterator[None]:
    await app.start()
    try:
        yield
    finally:
        await app.stop()
