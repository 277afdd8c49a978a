"""Nexus side, after a T2 that broke off: requests that the database takes for running here, and are not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Set
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.flow.registry import Registry
from pgnexus.nexus.settlement import Claim
from pgnexus.nexus.settler import Settler
from pgnexus.nexus.workflow import LLMRequestWorkflow

log = logging.getLogger(__name__)

_COMMITS_LATE = 5.0  # seconds after which a statement is over whose connection broke


class Strays:
    """Looks for them when there is reason to: at once, and once more when no broken statement can commit any more."""

    def __init__(self, db: Database, registry: Registry, settler: Settler) -> None:
        self._db = db
        self._registry = registry
        self._settler = settler
        self._looks: list[float] = []  # by time.monotonic()

    def doubt(self) -> None:
        """A call broke off that may have claimed requests of which nobody here knows."""
        now = time.monotonic()
        self._looks = [now, now + _COMMITS_LATE]

    def pause(self) -> float | None:
        """Seconds until the next look, 0 when it is due; None when there is no doubt."""
        return max(self._looks[0] - time.monotonic(), 0.0) if self._looks else None

    async def give_back(self, known: Set[tuple[UUID, int]]) -> None:
        """Put them back; ``known`` are (run_id, attempt) of those that run. No claim is under way."""
        rows = await self._db.query("held_tasks", {"worker_id": self._registry.instance_id()})
        strays = [
            Claim(row.run_id, row.step_slug, row.attempt, {}, None)
            for row in rows
            if (row.run_id, row.attempt) not in known
        ]
        if strays:
            log.warning("%d requests had been claimed in calls that broke off; given back", len(strays))
            releases = [LLMRequestWorkflow.release(claim, []) for claim in strays]
            await asyncio.gather(*map(self._settler.settle, releases))
        self._looks.pop(0)
