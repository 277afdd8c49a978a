"""Nexus side, beside every request: takes away what was kept for a time only."""

from __future__ import annotations

from pgnexus.db.database import Database
from pgnexus.looper import Looper
from pgnexus.settings import Settings

_EVERY = 30.0
_AT_ONCE = 50  # requests a transaction, so that none holds its locks for long
_ANSWERS_AT_ONCE = 500


class Housekeeping:
    """One loop: deletes the chunks of requests that ended chunk_ttl seconds ago, and kept answers whose time is over.

    Any number run side by side.
    """

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._params = {"ttl": settings.chunk_ttl, "limit": _AT_ONCE}
        pause = min(_EVERY, max(1.0, settings.chunk_ttl / 4))
        self._looper = Looper("housekeeping", self._prune, poll_interval=pause)

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _prune(self) -> float | None:
        [chunks] = await self._db.query("prune_chunks", self._params)
        [answers] = await self._db.query("prune_answers", {"limit": _ANSWERS_AT_ONCE})
        return 0 if chunks.pruned == _AT_ONCE or answers.pruned == _ANSWERS_AT_ONCE else None
