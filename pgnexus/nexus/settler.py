"""Nexus side, T3: settlements into the database, many in one transaction. What was paid for is never dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

import psycopg

from pgnexus.backoff import backoff
from pgnexus.batcher import Batcher
from pgnexus.db.connection import is_data_fault
from pgnexus.db.database import Database
from pgnexus.db.notifier import Notifier
from pgnexus.errors import DatabaseUnavailable
from pgnexus.messages import RESULTS_CHANNEL
from pgnexus.nexus.settlement import Settlement
from pgnexus.nexus.workflow import LLMRequestWorkflow
from pgnexus.portions import portions
from pgnexus.printable import one_line

log = logging.getLogger(__name__)

MAX_BATCH = 500


class Settler:
    """Completes, publishes and books in one transaction; tries until the database has taken it."""

    def __init__(
        self,
        db: Database,
        notifier: Notifier,
        worker_id: UUID,
        *,
        on_booked: Callable[[Iterable[tuple[UUID, int, int]]], None] = lambda _: None,
    ) -> None:
        """``on_booked`` hears of calls that are in the books, each (request_id, attempt, number)."""
        self._db = db
        self._on_booked = on_booked
        self._notifier = notifier
        self._worker_id = worker_id
        self._batcher: Batcher[Settlement, bool] = Batcher(self._flush, max_batch=MAX_BATCH)

    async def settle(self, settlement: Settlement) -> bool:
        """Store one settlement; False when the task had been taken from this worker."""
        for tries in range(1, 1_000_000):
            try:
                return await self._batcher.submit(settlement)
            except DatabaseUnavailable:
                pass  # the fence and the books' key make it safe to say it again
            except Exception as error:
                if is_data_fault(error):
                    log.error(
                        "request %s: its answer cannot be stored: %s",
                        settlement.claim.run_id,
                        one_line(error),
                    )
                    settlement = LLMRequestWorkflow.unstorable(settlement, str(error).splitlines()[0])
                elif not isinstance(error, psycopg.Error):
                    raise
                elif tries % 10 == 0:
                    log.warning("request %s: not settled yet: %s", settlement.claim.run_id, one_line(error))
            await asyncio.sleep(backoff(tries))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._batcher.close()

    async def _flush(self, settlements: list[Settlement]) -> Sequence[bool]:
        ordered = sorted(settlements, key=lambda s: s.claim.run_id)  # everybody locks in this order
        settled: set[UUID] = set()
        for items in portions([s.to_item() for s in ordered], len):
            settled |= await self._store(items)
        self._on_booked((s.claim.run_id, s.claim.attempt, call.number) for s in ordered for call in s.calls)
        return [s.claim.run_id in settled for s in settlements]

    async def _store(self, items: Sequence[str]) -> set[UUID]:
        notify = self._notifier.claim(RESULTS_CHANNEL)
        params = {"worker_id": self._worker_id, "items": list(items), "notify": notify}
        rows = await self._db.query("settle", params)
        if not notify:
            self._notifier.committed(RESULTS_CHANNEL)
        return {row.run_id for row in rows}
