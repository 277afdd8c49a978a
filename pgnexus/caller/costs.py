"""Beside the way of a request: what the calls to providers took, added up by whatever one asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal, localcontext
from typing import Final

from pgnexus.db.database import Database
from pgnexus.errors import InvalidRequest
from pgnexus.storable import check

COSTS_BY: Final = ("model", "provider", "agent", "task_type", "complexity", "day", "hour", "outcome")


@dataclass(frozen=True, slots=True)
class CostRow:
    """The calls that share what was asked for; of the first eight fields the others are None.

    Days and hours are UTC's. ``cost`` is the sum of the known costs in US dollars, None when none is known, and of
    ``calls_of_unknown_cost`` calls it lacks theirs; ``estimated_cost`` is the part of it that no vendor has told.
    """

    model: str | None
    provider: str | None
    agent: str | None
    task_type: str | None
    complexity: str | None
    day: date | None
    hour: datetime | None
    outcome: str | None
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: Decimal | None
    estimated_cost: Decimal | None
    calls_of_unknown_cost: int
    estimated_calls: int


_MONEY: Final = ("cost", "estimated_cost")
_COUNTS: Final = tuple(one.name for one in fields(CostRow) if one.name not in (*COSTS_BY, *_MONEY))
_DIGITS: Final = 200  # Decimal's own 28 would round


async def costs(
    db: Database,
    by: Sequence[str] = (),
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    agent_id: str | None = None,
) -> list[CostRow]:
    """One row for each combination of ``by`` (of `COSTS_BY`) among the calls that began in [since, until).

    Those that cost most come first, days and hours in their order. Raises `InvalidRequest` for an unknown ``by``.
    """
    for name in by:
        if name not in COSTS_BY:
            raise InvalidRequest(f"costs by {name!r:.100}: use some of {', '.join(COSTS_BY)}")
    check(agent_id, "agent_id")
    params = {"since": since, "until": until, "by": list(by), "agent_id": agent_id}
    rows = [CostRow(*row) for row in await db.query("costs", params)]
    return sorted(rows, key=lambda row: (row.day or date.min, str(row.hour or ""), -(row.cost or 0)))


def total(rows: Sequence[CostRow]) -> CostRow:
    """The sum of rows; exact."""
    counts = {name: sum(getattr(row, name) for row in rows) for name in _COUNTS}
    money = {name: _sum([getattr(row, name) for row in rows]) for name in _MONEY}
    return CostRow(**dict.fromkeys(COSTS_BY), **counts, **money)  # type: ignore[arg-type]


def _sum(amounts: Sequence[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    with localcontext(prec=_DIGITS):
        return sum(known, Decimal(0)) if known else None
