"""Nexus side, before each provider call: it passes here, or waits, or is refused for its budget."""

from __future__ import annotations

from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.nexus.limits.permit import UNLIMITED, Ask, OverBudget, OverLimit, Permit
from pgnexus.nexus.limits.scopes import Rules
from pgnexus.settings import Settings

__all__ = ["Ask", "Gate", "OverBudget", "OverLimit", "Permit"]


class Gate:
    """Lets calls pass as far as the limits and budgets of the settings go, for all workers together."""

    def __init__(self, db: Database, settings: Settings, instance_id: UUID) -> None:
        self._db = db
        self._instance_id = instance_id
        self._rules = Rules(settings)
        self.limited = bool(self._rules)

    async def start(self) -> None:
        """Begin; without limits and budgets nothing runs."""

    async def stop(self) -> None:
        """Give back what is left."""

    def forget(self) -> None:
        """This worker was given up: others have, or will get, all that it held."""

    async def admit(self, ask: Ask, *, patience: float) -> Permit | OverLimit | OverBudget:
        """Wait up to ``patience`` seconds for room in every scope of the call."""
        return UNLIMITED

    async def room(self, scope: str, most: int) -> tuple[int, float]:
        """How many more calls of ``scope`` may be made now, and in how many seconds it pays to ask again."""
        return most, 0.0

    def why(self, provider: str, model: str) -> str | None:
        """What limit a model is over just now, as far as this worker knows."""
        return None
