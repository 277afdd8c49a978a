"""The nexus side as a whole: what one process runs to serve requests."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import to_json

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.flow.recovery import Recovery
from pgnexus.flow.registry import Registry
from pgnexus.messages import REQUESTS_CHANNEL
from pgnexus.nexus.consumer import QueueConsumer
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.settler import Settler
from pgnexus.nexus.workflow import FLOW_SLUG, LLMRequestWorkflow
from pgnexus.providers.provider import Provider
from pgnexus.settings import Settings


class NexusService:
    """QueueConsumer, LLMRequestWorkflow, LLMRouter, Registry and Recovery, started and stopped in order."""

    def __init__(
        self,
        db: Database,
        listener: Listener,
        notifier: Notifier,
        settings: Settings,
        providers: Mapping[str, Provider],
    ) -> None:
        self._db = db
        self._settings = settings
        self._providers = providers
        self.router = LLMRouter(settings, providers)
        self.registry = Registry(
            db.url,
            FLOW_SLUG,
            heartbeat_interval=settings.heartbeat_interval,
            lease=settings.worker_lease,
            connect_timeout=settings.connect_timeout,
        )
        workflow = LLMRequestWorkflow(self.router, settings)
        self._settler = Settler(db, notifier, self.registry.instance_id())
        self.consumer = QueueConsumer(db, listener, self.registry, workflow, self._settler, settings)
        self._recovery = Recovery(
            db, lambda: notifier.committed(REQUESTS_CHANNEL), interval=settings.heartbeat_interval
        )

    async def start(self) -> None:
        await self.registry.start(self._db)
        models = [info._asdict() for info in self.router.available_models()]
        await self._db.query(
            "publish_models", {"worker_id": self.registry.instance_id(), "models": to_json(models).decode()}
        )
        self._recovery.start()
        self.consumer.start()

    def hurry(self) -> None:
        """Give back at once what `stop` is letting finish."""
        self.consumer.hurry()

    async def stop(self) -> None:
        """Drain: finish what runs within drain_timeout or give it back, then leave."""
        await self.consumer.stop(self._settings.drain_timeout)
        await self._settler.close()
        await self._recovery.stop()
        await self.registry.stop(self._db)
        for provider in self._providers.values():
            await provider.close()
