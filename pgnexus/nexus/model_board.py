"""Nexus side, for `get_available_models`: which models this worker can ask now, told when that changes."""

from __future__ import annotations

from uuid import UUID

from pydantic_core import to_json

from pgnexus import telemetry
from pgnexus.db.database import Database
from pgnexus.looper import Looper
from pgnexus.messages import ModelInfo
from pgnexus.nexus.router import LLMRouter

_EVERY = 1.0


class ModelBoard:
    """A loop that looks at what the router knows, and stores it when it is another than before."""

    def __init__(self, db: Database, router: LLMRouter, instance_id: UUID) -> None:
        self._db = db
        self._router = router
        self._instance_id = instance_id
        self._told: list[ModelInfo] | None = None
        self._looper = Looper("model board", self._tell, poll_interval=_EVERY)

    async def start(self) -> None:
        """Begin; returns when the models are told."""
        await self._tell()
        self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _tell(self) -> float | None:
        models = self._router.available_models()
        if models != self._told:
            telemetry.METERS.know((info.provider, info.model) for info in models)
            rows = to_json([info._asdict() for info in models]).decode()
            await self._db.query("publish_models", {"worker_id": self._instance_id, "models": rows})
            self._told = models
        return None
