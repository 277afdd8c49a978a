"""The nexus side as a whole: what one process runs to serve requests."""

from __future__ import annotations

from collections.abc import Mapping

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.flow.recovery import Recovery
from pgnexus.flow.registry import Registry
from pgnexus.messages import REQUESTS_CHANNEL
from pgnexus.nexus.books.bookkeeper import Bookkeeper
from pgnexus.nexus.books.reservations import Reservations
from pgnexus.nexus.calls.breakers import Breakers
from pgnexus.nexus.consumer import QueueConsumer
from pgnexus.nexus.housekeeping import Housekeeping
from pgnexus.nexus.limits.gate import Gate
from pgnexus.nexus.model_board import ModelBoard
from pgnexus.nexus.retention import parts
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.savings import Savings
from pgnexus.nexus.settler import Settler
from pgnexus.nexus.standings import Standings
from pgnexus.nexus.streams.chunks import ChunkWriter
from pgnexus.nexus.workflow import FLOW_SLUG, LLMRequestWorkflow
from pgnexus.providers.provider import Provider
from pgnexus.pruning import Pruner
from pgnexus.settings import Settings


class NexusService:
    """Everything of the nexus side in one process, started and stopped in order."""

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
        self.registry = Registry(
            db.url,
            FLOW_SLUG,
            heartbeat_interval=settings.heartbeat_interval,
            lease=settings.worker_lease,
            connect_timeout=settings.connect_timeout,
        )
        instance_id = self.registry.instance_id()
        self._breakers = Breakers(db, listener, settings, instance_id)
        self._gate = Gate(db, settings, instance_id)
        self._reservations = Reservations(db, instance_id)
        self._chunks = ChunkWriter(db, largest=settings.max_message_bytes)
        self.router = LLMRouter(
            settings,
            providers,
            breakers=self._breakers,
            gate=self._gate,
            reservations=self._reservations,
            waits=lambda scope: self.consumer.waits(scope),
            alive=self.registry.is_alive,
        )
        workflow = LLMRequestWorkflow(self.router, settings, savings=Savings(db), chunks=self._chunks)
        self._settler = Settler(db, notifier, instance_id, on_booked=self._reservations.booked)
        self.consumer = QueueConsumer(
            db, listener, self.registry, workflow, self._settler, settings, room=self._gate
        )
        self._board = ModelBoard(db, self.router, instance_id)
        self._recovery = Recovery(
            db, lambda: notifier.committed(REQUESTS_CHANNEL), interval=settings.heartbeat_interval
        )
        self._beside = (
            self._recovery,
            Bookkeeper(db, instance_id, settings.heartbeat_interval),
            Housekeeping(db, settings),
            Standings(db, self.router),
            Pruner(db, "requests", parts(settings)),
        )
        self.registry.on_lost(self._gate.forget)
        self.registry.on_lost(self._reservations.forget)

    async def start(self) -> None:
        await self.registry.start(self._db)
        await self._gate.start()
        self._breakers.start()
        await self._board.start()
        for loop in self._beside:
            loop.start()
        self.consumer.start()

    def hurry(self) -> None:
        """Give back at once what `stop` is letting finish."""
        self.consumer.hurry()

    async def stop(self) -> None:
        """Drain: finish what runs within drain_timeout or give it back, then leave."""
        await self.consumer.stop(self._settings.drain_timeout)
        await self._chunks.close()
        await self._settler.close()
        await self._reservations.close()
        await self._gate.stop()
        await self._breakers.stop()
        await self._board.stop()
        for loop in self._beside:
            await loop.stop()
        await self.registry.stop(self._db)
        for provider in self._providers.values():
            await provider.close()
