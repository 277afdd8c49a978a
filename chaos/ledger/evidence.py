"""All that is laid side by side, read once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from chaos.account import ProviderCall, read_calls
from chaos.ledger_file import Asked, read_ledgers
from chaos.queries import load
from chaos.record import Record
from pgnexus.db.database import Database

FLOW = "chaos_brief"


async def rows(db: Database, name: str, params: Mapping[str, Any] | None = None) -> list[Any]:
    """The rows of one of our own queries."""
    async with db.connection() as connection:
        cursor = await connection.execute(load(name), params)
        return await cursor.fetchall()


@dataclass
class Evidence:
    """``results``, ``runs`` and ``orders`` are the database's, by id; ``offset`` is from monotonic to wall time."""

    asked: list[Asked]
    calls: list[ProviderCall]
    record: Record
    results: dict[UUID, Any]
    runs: dict[UUID, Any]
    orders: set[UUID]
    attempts: list[Any]
    sums: list[Any]
    offset: float

    @classmethod
    async def read(cls, db: Database, ledgers: list[Path], account: Path, record: Record) -> Evidence:
        return cls(
            read_ledgers(ledgers),
            read_calls(account),
            record,
            {row.request_id: row for row in await rows(db, "results")},
            {row.run_id: row for row in await rows(db, "runs")},
            {row.request_id for row in await rows(db, "orders")},
            await rows(db, "attempts"),
            await rows(db, "sums"),
            time.time() - time.monotonic(),
        )

    @property
    def requests(self) -> list[Asked]:
        """What was asked, but for runs of flows."""
        return [one for one in self.asked if one.kind != "flow"]

    @property
    def flows(self) -> list[Asked]:
        return [one for one in self.asked if one.kind == "flow"]

    def calls_of_marks(self) -> dict[str, list[ProviderCall]]:
        """The calls of each mark, in the order in which they began."""
        found: dict[str, list[ProviderCall]] = defaultdict(list)
        for call in self.calls:
            found[call.mark].append(call)
        return found

    def moment(self, when: Any) -> float:
        """A time of the database by time.monotonic()."""
        return float(when.timestamp()) - self.offset
