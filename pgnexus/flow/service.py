"""Flows in one process: what starts them, runs them and recovers them, started and stopped in order."""

from __future__ import annotations

from collections.abc import Callable

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.flow.recovery import Recovery
from pgnexus.flow.registry import Registry
from pgnexus.flow.retention import parts
from pgnexus.flow.runs.executor import Executor
from pgnexus.flow.schedules.firer import ScheduleFirer
from pgnexus.flow.work.deferral import Kinds
from pgnexus.flow.work.flows import Flows
from pgnexus.flow.work.worker import Worker
from pgnexus.pruning import Pruner
from pgnexus.settings import Settings

_WORKER = "pgflow"  # what its row in pgflow.workers says it works on


class FlowService:
    """An Executor; with flows to run also a Worker, its Registry, Recovery, and what fires schedules.

    ``on_recovered`` hears when work of others, of flows or not, may be claimed again.
    """

    def __init__(
        self,
        db: Database,
        listener: Listener,
        notifier: Notifier,
        settings: Settings,
        flows: Flows,
        *,
        kinds: Kinds | None = None,
        on_recovered: Callable[[], None] = lambda: None,
    ) -> None:
        self._db = db
        self._settings = settings
        self._flows = flows
        self.executor = Executor(db, listener, notifier, flows, settings)
        self.worker: Worker | None = None
        if flows:
            self.registry = Registry(
                db.url,
                _WORKER,
                heartbeat_interval=settings.heartbeat_interval,
                lease=settings.worker_lease,
                connect_timeout=settings.connect_timeout,
            )
            self._firer = ScheduleFirer(db, listener, poll_interval=settings.poll_interval)
            self._pruner = Pruner(db, "flows", parts(settings))
            self._recovery = Recovery(db, on_recovered, interval=settings.heartbeat_interval)
            self.worker = Worker(
                db,
                listener,
                notifier,
                self.registry,
                flows,
                settings,
                kinds=kinds,
                on_delay=self._recovery.expect,
                on_stored=self.executor.changed,
            )

    async def start(self) -> None:
        await self._flows.compile()
        if self.worker is not None:
            await self.registry.start(self._db)
            self._recovery.start()
            self._firer.start()
            self._pruner.start()
            self.worker.start()
        self.executor.begin()

    def hurry(self) -> None:
        """Give back at once what `stop` is letting finish."""
        if self.worker is not None:
            self.worker.hurry()

    async def stop(self) -> None:
        """Drain: finish what runs within drain_timeout or give it back, then leave."""
        if self.worker is not None:
            await self._pruner.stop()
            await self._firer.stop()
            await self.worker.stop(self._settings.drain_timeout)
            await self._recovery.stop()
            await self.registry.stop(self._db)
        await self.executor.end()
