"""The only wiring: settings to a running caller side, nexus side, or both in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pgnexus.caller.service import LLMService
from pgnexus.caller.sync import SyncLLMService
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.nexus.service import NexusService
from pgnexus.providers import build_providers
from pgnexus.settings import Settings


class App:
    """What one process runs: the caller side unless ``caller`` is False, the nexus side if ``nexus`` is True.

    With ``nexus`` None it runs a nexus side when no other is alive, so that a script just works.
    """

    def __init__(self, settings: Settings, *, caller: bool = True, nexus: bool | None = None) -> None:
        self.settings = settings
        self._wants_caller = caller
        self._wants_nexus = nexus
        self._stack = AsyncExitStack()
        self._service: LLMService | None = None
        self.nexus: NexusService | None = None

    @property
    def service(self) -> LLMService:
        if self._service is None:
            raise RuntimeError("this App runs no caller side, or is not started")
        return self._service

    async def start(self) -> None:
        """Start everything, or nothing: what was started is stopped when a later part fails."""
        async with self._stack as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Stop everything, the last started first."""
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        url = settings.database_url or await self._embedded(stack)
        db = await Database.open(url, connect_timeout=settings.connect_timeout, pool_size=settings.pool_size)
        stack.push_async_callback(db.close)
        await schema.verify(db)
        notifier = Notifier(db)
        stack.push_async_callback(notifier.close)
        listener = Listener(
            settings.listen_url or url, connect_timeout=settings.connect_timeout, probe_url=url
        )
        if self._wants_caller:
            self._service = LLMService(db, listener, notifier, settings)
        if await self._needs_nexus(db):
            self.nexus = NexusService(db, listener, notifier, settings, build_providers(settings))
        await listener.start()
        stack.push_async_callback(listener.stop)
        for part in (self._service, self.nexus):
            if part is not None:
                stack.push_async_callback(part.stop)
                await part.start()

    async def _embedded(self, stack: AsyncExitStack) -> str:
        server = EmbeddedServer(self.settings.data_dir)
        url = await asyncio.to_thread(server.start)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        await schema.migrate(url)
        return url

    async def _needs_nexus(self, db: Database) -> bool:
        if self._wants_nexus is not None:
            return self._wants_nexus
        [row] = await db.query("live_instances")
        return bool(row.instances == 0)


@asynccontextmanager
async def open(
    settings: Settings | None = None, *, nexus: bool | None = None, **overrides: Any
) -> AsyncIterator[LLMService]:
    """A running `LLMService` on the database of the settings, or on the embedded one.

    ``nexus`` True runs the nexus side in this process, too, False leaves it to others, None does what is
    needed. Keyword arguments are settings, over all other sources.
    """
    app = App(settings or Settings.load(**overrides), nexus=nexus)
    await app.start()
    try:
        yield app.service
    finally:
        await app.stop()


def open_sync(
    settings: Settings | None = None, *, nexus: bool | None = None, **overrides: Any
) -> SyncLLMService:
    """`open` for code that is not asynchronous: `with pgnexus.open_sync() as llm`."""
    return SyncLLMService(lambda: open(settings, nexus=nexus, **overrides))
