"""The first transaction of a run: what is started at the same time is stored together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import psycopg

from pgnexus.batcher import Batcher
from pgnexus.db.database import Database
from pgnexus.db.notifier import Notifier
from pgnexus.errors import DatabaseUnavailable, InvalidRequest, PgnexusError, UnknownFlow
from pgnexus.flow.work.outcomes import RUNS_CHANNEL
from pgnexus.portions import portions

MAX_BATCH = 500


class _Start(NamedTuple):
    flow: str
    exact: bool
    input: str
    run_id: UUID


class Started(NamedTuple):
    """A run that is stored; ``created`` is False when it had been started before."""

    run_id: UUID
    created: bool


class Starts:
    """Starts runs, many callers in one statement."""

    def __init__(self, db: Database, notifier: Notifier) -> None:
        self._db = db
        self._notifier = notifier
        self._batcher: Batcher[_Start, Started] = Batcher(self._store, max_batch=MAX_BATCH)

    async def start(self, flow: str, input: str, run_id: UUID, *, exact: bool) -> Started:
        """Start one run of the flow with exactly this slug, or of the newest version of this name.

        The first version's slug is the name.
        """
        try:
            return await self._batcher.submit(_Start(flow, exact, input, run_id))
        except psycopg.Error as error:
            raise _refusal(error) from error

    async def close(self) -> None:
        await self._batcher.close()

    async def _store(self, starts: Sequence[_Start]) -> list[Started]:
        """By flows: a batch that is halved says again what was committed, which the ids make safe."""
        by_flow: dict[tuple[str, bool], list[_Start]] = {}
        for start in starts:
            by_flow.setdefault((start.flow, start.exact), []).append(start)
        created: set[UUID] = set()
        for of_flow in by_flow.values():
            for part in portions(of_flow, lambda start: len(start.input), most=MAX_BATCH):
                created |= await self._store_at_once(part)
        return [Started(start.run_id, start.run_id in created) for start in starts]

    async def _store_at_once(self, starts: Sequence[_Start]) -> set[UUID]:
        notify = self._notifier.claim(RUNS_CHANNEL)
        params = {
            "flow": starts[0].flow,
            "exact": starts[0].exact,
            "inputs": [start.input for start in starts],
            "run_ids": [start.run_id for start in starts],
            "notify": notify,
        }
        try:
            rows = await self._db.query("start_flows", params)
        except DatabaseUnavailable:
            # Whether it was committed is unknown; the ids make it safe to say it once more.
            rows = await self._db.query("start_flows", params)
        if not notify:
            self._notifier.committed(RUNS_CHANNEL, [str(start.run_id) for start in starts])
        return {row.run_id for row in rows if row.created}


def _refusal(error: psycopg.Error) -> PgnexusError | psycopg.Error:
    said = error.diag.message_primary or str(error)
    if error.sqlstate == "PN010":
        return UnknownFlow(f"{said}; {error.diag.message_hint}" if error.diag.message_hint else said)
    if error.sqlstate in ("P0001", "PN012"):
        return InvalidRequest(said)
    return error
