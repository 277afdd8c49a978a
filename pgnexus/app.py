"""The only wiring: settings to a running caller side, nexus side, or both in one process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import Any

from pgnexus.caller.llm_steps import LLMSteps
from pgnexus.caller.service import LLMService
from pgnexus.caller.sync import SyncLLMService
from pgnexus.caller.workflow import LlmRequest
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.errors import InvalidSettings, SchemaMismatch
from pgnexus.flow.built.builder import FlowBuilder
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.runs.executor import Executor
from pgnexus.flow.service import FlowService
from pgnexus.flow.work.flows import Flows
from pgnexus.looper import Looper
from pgnexus.messages import REQUESTS_CHANNEL
from pgnexus.nexus.service import NexusService
from pgnexus.providers import Provider, build_providers
from pgnexus.settings import Settings

log = logging.getLogger(__name__)

_KEEPER_LOOKS = 1.0  # seconds between looks at the embedded server's process

Report = Callable[[str], None]
ProviderMaker = Callable[[Settings], Mapping[str, Provider]]


class App:
    """What one process runs: the caller side unless ``caller`` is False, the nexus side if ``nexus`` is True.

    With ``flows`` it runs these, with a ``builder`` flows built at run time of its actions, with either also
    `LlmRequest`, and has an `Executor`; with ``executor`` it has one in any case.

    With ``nexus`` None it runs a nexus side when no other is alive, at the start or later, so that a script
    just works. ``providers`` makes those that a nexus side here asks, by name. ``report`` is told in a few words
    what the start is at.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        caller: bool = True,
        nexus: bool | None = None,
        flows: Sequence[Blueprint] = (),
        builder: FlowBuilder | None = None,
        executor: bool = False,
        providers: ProviderMaker = build_providers,
        report: Report = lambda _: None,
    ) -> None:
        self.settings = settings
        self._wants_flows = list(flows)
        self._builder = builder
        self._wants_executor = executor or bool(self._wants_flows) or builder is not None
        if (self._wants_flows or builder is not None) and LlmRequest not in self._wants_flows:
            self._wants_flows.append(LlmRequest)
        self._wants_caller = caller
        self._wants_nexus = nexus
        self._providers = providers
        self._report = report
        self._stack = AsyncExitStack()
        self._service: LLMService | None = None
        self._db: Database | None = None
        self.nexus: NexusService | None = None
        self.flows: FlowService | None = None
        self.url = ""

    @property
    def db(self) -> Database:
        if self._db is None:
            raise RuntimeError("this App is not started")
        return self._db

    @property
    def service(self) -> LLMService:
        if self._service is None:
            raise RuntimeError("this App runs no caller side, or is not started")
        return self._service

    @property
    def executor(self) -> Executor:
        if self.flows is None:
            raise RuntimeError("this App has no executor, or is not started")
        return self.flows.executor

    async def start(self) -> None:
        """Start everything, or nothing: what was started is stopped when a later part fails."""
        async with self._stack as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Stop everything, the last started first."""
        await self._stack.aclose()

    def hurry(self) -> None:
        """Give back at once what `stop` is letting finish."""
        for part in (self.nexus, self.flows):
            if part is not None:
                part.hurry()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        self.url = url = await stack.enter_async_context(database_url(settings, self._report))
        db = await Database.open(url, connect_timeout=settings.connect_timeout, pool_size=settings.pool_size)
        stack.push_async_callback(db.close)
        self._db = db
        await schema.verify(db)
        may_be_nexus = await schema.check_rights(db, caller=self._wants_caller, nexus=bool(self._wants_nexus))
        if self._wants_nexus is None and not may_be_nexus:
            self._wants_nexus = False  # a caller's role: the nexus side is for others to run
        needs_nexus = await self._needs_nexus(db)
        notifier = Notifier(db)
        stack.push_async_callback(notifier.close)
        listener = self._listener()
        if self._wants_caller:
            self._service = LLMService(db, listener, notifier, settings)
        if needs_nexus:
            self._report("starting a nexus")
            self.nexus = NexusService(db, listener, notifier, settings, self._providers(settings))
        if self._wants_executor:
            self.flows = FlowService(
                db,
                listener,
                notifier,
                settings,
                Flows(db, self._wants_flows, builder=self._builder),
                kinds={"llm": LLMSteps(settings)},
                on_recovered=lambda: notifier.committed(REQUESTS_CHANNEL),
            )
        await listener.start()
        stack.push_async_callback(listener.stop)
        for part in (self._service, self.nexus, self.flows):
            if part is not None:
                stack.push_async_callback(part.stop)
                await part.start()
        if self._wants_nexus is None and self.nexus is None:
            await self._stand_by(db, notifier, stack)

    def _listener(self) -> Listener:
        settings = self.settings
        return Listener(
            settings.listen_url or self.url, connect_timeout=settings.connect_timeout, probe_url=self.url
        )

    async def _needs_nexus(self, db: Database) -> bool:
        if self._wants_nexus is not None:
            return self._wants_nexus
        [row] = await db.query("live_instances", {"lease": self.settings.worker_lease})
        return bool(row.instances == 0)

    async def _stand_by(self, db: Database, notifier: Notifier, stack: AsyncExitStack) -> None:
        """Look for a live nexus now and then: the one that was there may leave, or have been dying."""

        async def look() -> float | None:
            if self.nexus is None and await self._needs_nexus(db):
                # Its own listener, for one that runs takes no more channels.
                listener = self._listener()
                nexus = NexusService(db, listener, notifier, self.settings, self._providers(self.settings))
                # What has begun ends when the rest cannot start: this is tried again.
                async with AsyncExitStack() as begun:
                    begun.push_async_callback(listener.stop)
                    await listener.start()
                    begun.push_async_callback(nexus.stop)
                    await nexus.start()
                    late.push_async_callback(begun.pop_all().aclose)
                self.nexus = nexus
            return None

        late = await stack.enter_async_context(AsyncExitStack())
        standby = Looper("nexus standby", look, poll_interval=self.settings.heartbeat_interval)
        stack.push_async_callback(standby.stop)
        standby.start()


@asynccontextmanager
async def database_url(
    settings: Settings, report: Report = lambda _: None, *, migrates: bool = True
) -> AsyncIterator[str]:
    """The URL of the settings' database, or of the embedded one, which runs meanwhile, even when it is killed.

    The embedded one's schema is brought up to date first, unless ``migrates`` is False.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = EmbeddedServer(settings.data_dir)
    report("starting PostgreSQL")
    url = await asyncio.to_thread(server.start)
    keeper = _keeper(server)
    keeper.start()
    try:
        if migrates:
            report("looking after the schema")
            await schema.migrate(url)
        yield url
    except SchemaMismatch as error:
        raise SchemaMismatch(
            f"{error}. It is in the embedded server's directory {server.data_dir}: "
            "set PGNEXUS_DATA_DIR to another directory, or remove that one with all that is stored there"
        ) from error
    finally:
        await keeper.stop()
        await asyncio.to_thread(server.stop)


def _keeper(server: EmbeddedServer) -> Looper:
    """Nobody else looks after the embedded server."""

    async def keep() -> None:
        if not server.is_running:
            log.warning("the embedded server in %s is gone; it is started again", server.data_dir)
            await asyncio.to_thread(server.start)

    return Looper("embedded server", keep, poll_interval=_KEEPER_LOOKS)


@asynccontextmanager
async def open(
    settings: Settings | None = None,
    *,
    nexus: bool | None = None,
    providers: ProviderMaker = build_providers,
    **overrides: Any,
) -> AsyncIterator[LLMService]:
    """A running `LLMService` on the database of the settings, or on the embedded one.

    ``nexus`` True runs the nexus side in this process, too, False leaves it to others, None does what is
    needed. ``providers`` are asked by that nexus side, those of the settings unless others are given (see
    `pgnexus.testing.FakeLLM`). Keyword arguments are settings, over all other sources.
    """
    app = App(settings or Settings.load(**overrides), nexus=nexus, providers=providers)
    await app.start()
    try:
        yield app.service
    finally:
        await app.stop()


def open_sync(
    settings: Settings | None = None,
    *,
    nexus: bool | None = None,
    providers: ProviderMaker = build_providers,
    **overrides: Any,
) -> SyncLLMService:
    """`open` for code that is not asynchronous: `with pgnexus.open_sync() as llm`."""
    return SyncLLMService(lambda: open(settings, nexus=nexus, providers=providers, **overrides))


@asynccontextmanager
async def executor(
    *flows: Blueprint,
    builder: FlowBuilder | None = None,
    settings: Settings | None = None,
    nexus: bool | None = None,
    providers: ProviderMaker = build_providers,
    **overrides: Any,
) -> AsyncIterator[Executor]:
    """A running `Executor`, and a worker in this process for these flows, if there are any.

    With ``builder`` it runs flows built at run time, too. The rest is as with `open`: LLM steps are asked
    and answered.

        async with pgnexus.executor(review) as executor:
            report = await executor.execute(review, {"repo": "…"})
    """
    app = App(
        settings or Settings.load(**overrides),
        nexus=nexus,
        flows=flows,
        builder=builder,
        executor=True,
        providers=providers,
    )
    await app.start()
    try:
        yield app.executor
    finally:
        await app.stop()


def load_flow(path: str) -> Blueprint:
    """The flow that ``package.module:name`` names; `InvalidSettings` when there is none."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise InvalidSettings(f'flows: {path!r} names no flow; write "package.module:name"')
    try:
        flow = getattr(import_module(module), name, None)
    except ImportError as error:
        raise InvalidSettings(f"flows: {path!r} cannot be imported: {error}") from error
    if not isinstance(flow, Blueprint):
        raise InvalidSettings(f"flows: {path!r} is no Flow")
    return flow
