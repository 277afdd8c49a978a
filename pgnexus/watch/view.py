"""Beside the way of a request: what all instances are doing now, as the database knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from pgnexus.db.database import Database


@dataclass(frozen=True, slots=True)
class QueueNow:
    """One queue: messages in it, those of them that may be read, and the age of the oldest in seconds."""

    queue: str
    depth: int
    ready: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True)
class ParkedNow:
    """Requests that wait in line for one scope; ``flight`` are all that wait for another's answer."""

    scope: str
    requests: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True)
class CallsNow:
    """The provider calls of one model that ended in the window; ``failures`` counts them by outcome.

    ``in_flight`` are those under way.
    """

    provider: str
    model: str
    calls: int
    failures: Mapping[str, int]
    tokens: int
    cost: Decimal | None
    p50_ms: float | None
    p95_ms: float | None
    in_flight: int = 0

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


@dataclass(frozen=True, slots=True)
class BreakerNow:
    """A model that is left alone for ``open_for`` seconds more; 0: the next call finds out."""

    provider: str
    model: str
    reason: str
    open_for: float
    times: int


@dataclass(frozen=True, slots=True)
class LimitNow:
    """A limit or budget: ``used`` is the share of it that is spent or set aside; of a rate, what its bucket lacks."""

    scope: str
    kind: str
    limit: Decimal
    used: float


@dataclass(frozen=True, slots=True)
class View:
    """One look. ``total`` are the calls of all models together, ``window`` the seconds that they ended in."""

    at: datetime
    window: float
    queues: tuple[QueueNow, ...]
    parked: tuple[ParkedNow, ...]
    total: CallsNow
    calls: tuple[CallsNow, ...]
    breakers: tuple[BreakerNow, ...]
    limits: tuple[LimitNow, ...]
    in_flight: int
    waiting_for_retry: int
    instances: int

    @classmethod
    async def read(cls, db: Database, *, lease: float, window: float) -> View:
        """Ask the database now; an instance is alive for ``lease`` seconds after each sign of life."""
        [row] = await db.query("watch", {"lease": lease, "window": window})
        return cls.of(row.seen)

    @classmethod
    def of(cls, seen: Mapping[str, Any]) -> View:
        """What nexus_api.watch returns, as a value."""
        total, *calls = _calls(seen)
        return cls(
            at=datetime.fromisoformat(seen["at"]),
            window=seen["window"],
            queues=tuple(QueueNow(**one) for one in seen["queues"]),
            parked=tuple(ParkedNow(**one) for one in seen["parked"]),
            total=total,
            calls=tuple(calls),
            breakers=tuple(
                BreakerNow(**{name: one[name] for name in BreakerNow.__slots__}) for one in seen["breakers"]
            ),
            limits=tuple(
                LimitNow(one["scope"], one["kind"], Decimal(str(one["limit"])), one["used"])
                for one in seen["limits"]
            ),
            in_flight=seen["in_flight"],
            waiting_for_retry=seen["waiting_for_retry"],
            instances=seen["instances"],
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent since a moment; ``unpriced`` calls used tokens at a price that is not known."""

    cost: Decimal
    tokens: int
    unpriced: int
    since: datetime

    @classmethod
    async def today_and_this_month(cls, db: Database) -> tuple[Spent, Spent]:
        """By UTC days and months. Reads the books of the month: seconds, when there are many."""
        today, month = [cls(*row) for row in await db.query("spent")]
        return today, month


def _calls(seen: Mapping[str, Any]) -> list[CallsNow]:
    """All together, then by model, also of models that have only calls under way."""
    flying = {(one["provider"], one["model"]): one["calls"] for one in seen["calls_in_flight"]}
    found = [_ended(one, flying.pop((one["provider"], one["model"]), 0)) for one in seen["calls"]]
    return found + [CallsNow(*who, 0, {}, 0, None, None, None, calls) for who, calls in flying.items()]


def _ended(one: Mapping[str, Any], in_flight: int) -> CallsNow:
    named = {"provider": one["provider"] or "", "model": one["model"] or "", "in_flight": in_flight}
    cost = None if one["cost"] is None else Decimal(str(one["cost"]))
    return CallsNow(**{**one, **named, "cost": cost})
