"""Nexus side, after a T2 that broke off: requests that the database takes for running here go back to their queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Set
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.flow.doubt import Doubt
from pgnexus.flow.registry import Registry
from pgnexus.nexus.settlement import Claim
from pgnexus.nexus.settler import Settler
from pgnexus.nexus.workflow import LLMRequestWorkflow

log = logging.getLogger(__name__)


class Strays:
    """Looks for them while there is ``doubt``."""

    def __init__(self, db: Database, registry: Registry, settler: Settler) -> None:
        self._db = db
        self._registry = registry
        self._settler = settler
        self.doubt = Doubt()

    async def give_back(self, known: Set[tuple[UUID, int]]) -> None:
        """Put them back; ``known`` are (run_id, attempt) of those that run. No claim is under way."""
        with self.doubt.look():
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
