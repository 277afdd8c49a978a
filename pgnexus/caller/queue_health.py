"""Beside the way of a request: how much waits on it where, and how fast it moves."""

from __future__ import annotations

from dataclasses import dataclass

from pgnexus.db.database import Database


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue: messages in it, those that may be read now, age of the oldest in seconds, and its archive."""

    queue: str
    depth: int
    ready: int
    oldest_seconds: int | None
    archived: int


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """All queues, and the nexus side's last five minutes; latencies are of provider calls, in milliseconds.

    ``failures`` counts failed calls by "provider outcome".
    """

    queues: tuple[QueueDepth, ...]
    in_flight: int
    waiting_for_retry: int
    instances: int
    calls: int
    calls_per_second: float
    failed_calls: int
    failures: dict[str, int]
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @classmethod
    async def read(cls, db: Database, lease: float) -> QueueHealth:
        """Ask the database now; an instance is alive for ``lease`` seconds after each sign of life."""
        queues = tuple(QueueDepth(*row) for row in await db.query("queue_metrics"))
        [activity] = await db.query("activity", {"lease": lease})
        return cls(queues, *activity)
