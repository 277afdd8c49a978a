"""Nexus side, for the choice of a model: how the candidates did of late, as the books of all workers tell."""

from __future__ import annotations

from typing import Final

from pgnexus.db.database import Database
from pgnexus.looper import Looper
from pgnexus.nexus.calls.complaints import REQUESTS_OWN
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.selection import Candidate, Conditions, Standing

_EVERY: Final = 10.0
_LATELY: Final = 600.0
_SHORTEST: Final = 5.0
_MANY: Final = 50_000  # calls; a look at more takes longer and tells nothing else
_NOT_THE_VENDORS: Final = [*(error.type for error in REQUESTS_OWN), "cancelled", "unknown"]


async def read_standings(db: Database, seconds: float = _LATELY) -> tuple[Conditions, int]:
    """How the models did in the last ``seconds`` and which breakers are open, and of how many calls that is."""
    rows = await db.query("standings", {"seconds": seconds, "not_the_vendors": _NOT_THE_VENDORS})
    conditions = {
        Candidate(row.provider, row.model): Standing(row.latency_ms, row.success_rate, row.open_for)
        for row in rows
    }
    return conditions, sum(row.calls for row in rows)


class Standings:
    """A loop that reads latency and success of the last ten minutes every ten seconds, when a route orders by them.

    When there are many calls it looks at the last of them only.
    """

    def __init__(self, db: Database, router: LLMRouter) -> None:
        self._db = db
        self._router = router
        self._seconds = _LATELY
        self._looper = Looper("standings", self._look, poll_interval=_EVERY)

    def start(self) -> None:
        if self._router.by_standing:
            self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _look(self) -> float | None:
        self._router.conditions, calls = await read_standings(self._db, self._seconds)
        if calls > _MANY:
            self._seconds = max(_SHORTEST, self._seconds / 2)
        elif calls < _MANY / 4:
            self._seconds = min(_LATELY, self._seconds * 2)
        return None
