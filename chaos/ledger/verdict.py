"""The verdict on one round: its counts, and everything that is wrong."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from chaos.ledger import books, calls, fates
from chaos.ledger.evidence import Evidence, rows
from chaos.record import Record
from pgnexus.db.database import Database

_HEARD = ("success", "failed")  # ends that need a nexus: a timeout comes without


@dataclass
class Verdict:
    """Of one round; lists are in words, for people."""

    seed: int
    accepted: int = 0
    rolled_back: int = 0
    undecided: int = 0
    results: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    calls: int = 0
    asked_again: dict[str, int] = field(default_factory=dict)
    told_to_wait: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    settled: float | None = (
        None  # seconds from the last heal until nothing was under way; None: it never came to that
    )

    @property
    def green(self) -> bool:
        return not (self.lost or self.doubled or self.stuck or self.wrong)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "green": self.green}


async def judge(db: Database, seed: int, seen: Evidence) -> Verdict:
    """Lay everything side by side."""
    again, unexplained = calls.again(seen)
    told_to_wait, impatient = calls.retry_after(seen)
    verdict = Verdict(
        seed,
        accepted=sum(one.accepted for one in seen.asked),
        rolled_back=sum(one.undone for one in seen.asked),
        undecided=sum(one.undecided for one in seen.asked),
        results=dict(Counter(row.status for row in seen.results.values()).most_common()),
        runs=dict(Counter(row.status for row in seen.runs.values()).most_common()),
        lost=fates.lost(seen),
        doubled=fates.doubled(seen),
        stuck=fates.stuck(seen) + await left(db, seen.record),
        calls=len(seen.calls),
        asked_again=dict(again.most_common()),
        told_to_wait=told_to_wait,
        faults=dict(Counter(one.fault for one in seen.record.struck).most_common()),
        recovery=recovery(seen),
    )
    checks = (
        fates.never_were,
        fates.ends,
        calls.texts,
        calls.at_once,
        calls.one_flight,
        books.account,
        books.sums,
    )
    verdict.wrong = [*unexplained, *impatient, *(fault for check in checks for fault in check(seen))]
    verdict.wrong += await books.budgets(db, seen)
    return verdict


async def left(db: Database, record: Record) -> list[str]:
    """What should be gone."""
    return [f"{row.what}: {row.n}" for row in await rows(db, "left", {"crashed": record.crashed})]


def recovery(seen: Evidence) -> dict[str, list[float]]:
    """By fault, the seconds from each heal until the first result of a request that was accepted after it."""
    ends = sorted(
        (seen.moment(row.enqueued_at), seen.moment(row.finished_at))
        for row in seen.results.values()
        if row.finished_at is not None and row.status in _HEARD
    )
    found: dict[str, list[float]] = defaultdict(list)
    for one in seen.record.struck:
        after = [finished for enqueued, finished in ends if enqueued >= one.healed]
        if after:
            found[one.fault].append(round(min(after) - one.healed, 3))
    return dict(found)


def middle_and_most(seconds: list[float]) -> tuple[float, float]:
    """p50 and maximum."""
    return statistics.median(seconds), max(seconds)
