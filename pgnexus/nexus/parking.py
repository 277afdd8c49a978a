"""Nexus side, between T3 and T2: requests in line for a limit, taken up when there is room and their turn has come."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from pgnexus.db.database import Database
from pgnexus.flow.registry import Registry
from pgnexus.nexus.settlement import SHARE, Claim

log = logging.getLogger(__name__)

PARKED_CHANNEL = "pgnexus_parked"  # NOTIFY: the first request of a line was parked; its payload is the scope

_MOST_LINES = 1000  # that one look finds; the next one goes on behind them
_MOST_ASKED = 16  # lines in one round, so that the lanes are not kept waiting
_SHORTEST = 0.01  # seconds
_FIRST_REST = 0.05  # seconds
_LAST_REST = 2.0
_PACED = 1.0  # seconds over which the pace of a line is taken
_AHEAD = 0.2  # seconds' worth of a line that may wait in the worker
_STRANDED = 60.0  # seconds after which somebody who follows a flight asks for itself
_MOST_STRANDED = 1000


class Room(Protocol):
    """What there is to be had of a limit; see `pgnexus.nexus.limits.gate.Gate`."""

    async def room(self, scope: str, most: int) -> tuple[int, float]:
        """How many more calls of ``scope`` may be made now, and in how many seconds it pays to ask again."""


@dataclass(slots=True)
class Line:
    """Those who wait for one scope: when it pays to look again, which agent had the last turn, how fast it moves."""

    due: float  # by time.monotonic(), as all times here
    after: str = ""
    taken: int = 0  # since
    since: float = field(default_factory=time.monotonic)
    pace: float = 0.0  # taken in a second, of late
    rests_until: float = float("-inf")
    urgent: bool = True  # some of it may be interactive
    rest: float = 0.0  # seconds; grows while those whose turn it was come back

    @property
    def looks_at(self) -> float:
        return max(self.due, self.rests_until)

    def came_back(self, now: float) -> None:
        """Somebody whose turn it was found no room: it pays to ask less often."""
        if now >= self.rests_until:
            self.rest = min(max(self.rest * 2, _FIRST_REST), _LAST_REST)
            self.rests_until = now + self.rest

    def ahead(self, now: float) -> int:
        """How many more than there is room for should come, so that each call that ends is followed at once."""
        if now - self.since > _PACED:
            self.pace, self.taken, self.since = self.taken / (now - self.since), 0, now
        return int(self.pace * _AHEAD)


def claimed(rows: list[Any], turn: str | None = None) -> list[Claim]:
    """The claims that a query which takes requests answered with."""
    now = time.monotonic()
    return [
        Claim(
            row.run_id,
            row.step_slug,
            row.attempt,
            row.input,
            None if row.seconds_left is None else now + row.seconds_left,
            turn,
            row.waited if turn is None else None,
        )
        for row in rows
    ]


class Parking:
    """Knows in which lines somebody waits, by its own parking, by NOTIFY, and by a look now and then."""

    def __init__(self, db: Database, registry: Registry, room: Room | None, *, interval: float) -> None:
        self._db = db
        self._registry = registry
        self._room = room
        self._interval = interval
        self._lines: dict[str, Line] = {}
        self._look_at = time.monotonic()
        self._look_after = ""
        self._rescue_at = time.monotonic() + _STRANDED / 2

    def heard(self, scope: str, *, urgent: bool = True) -> None:
        """Somebody was parked there, ``urgent`` if it may be an interactive request."""
        if scope == "":  # the listener is back, and may have missed something
            self._look_at = time.monotonic()
        elif not scope.startswith("flight:"):  # whoever ends a flight sends its followers on
            line = self._lines.setdefault(scope, Line(time.monotonic(), urgent=urgent))
            line.urgent |= urgent

    @property
    def waiting(self) -> bool:
        """Whether somebody is known to wait in any line."""
        return bool(self._lines)

    def settled(self, claim: Claim, scope: str | None) -> None:
        """A claim has ended, parked where ``scope`` is named."""
        if scope is not None:
            self.heard(scope, urgent=claim.told("priority") == "interactive")
        if claim.turn is not None and (line := self._lines.get(claim.turn)) is not None:
            if scope == claim.turn:
                line.came_back(time.monotonic())
            else:
                line.rest = 0.0

    def freed(self) -> None:
        """A call has ended, which may make room in any line."""
        now = time.monotonic()
        for line in self._lines.values():
            line.due = min(line.due, now)

    def pause(self) -> float | None:
        """Seconds until it pays to take again; None when nobody is known to wait."""
        due = [line.looks_at for scope, line in self._lines.items() if scope != SHARE]
        return max(min(due) - time.monotonic(), _SHORTEST) if due else None

    def waits(self, scope: str) -> bool:
        """Whether somebody is known to wait there."""
        return scope in self._lines

    async def take(self, free: int, others: int) -> list[Claim]:
        """Claims from all lines that have room, ``free`` at most, of them ``others`` that are not interactive."""
        now = time.monotonic()
        claims: list[Claim] = []
        if now >= self._look_at:
            await self._look(now)
            params = {"worker_id": self._registry.instance_id(), "limit": max(1, others)}
            claims += claimed(await self._db.query("take_overdue", params), turn="")
        due = [scope for scope, line in self._lines.items() if line.looks_at <= now and scope != SHARE]
        for scope in sorted(due, key=lambda name: self._lines[name].due)[:_MOST_ASKED]:
            line, ordinary = self._lines[scope], max(0, others - _ordinary(claims))
            left = free - len(claims)
            if not line.urgent:
                left = min(left, ordinary)  # what is promised and not used is kept from others
            if left <= 0:
                continue
            most, wait = (left, 0.0) if self._room is None else await self._room.room(scope, left)
            line.due = time.monotonic() + max(wait, _SHORTEST)
            if most > 0:
                most = min(most + line.ahead(now), left)
                claims += await self.take_from(scope, most, ordinary)
        return claims

    async def take_from(self, scope: str, limit: int, others: int) -> list[Claim]:
        """Claims from one line; when it has no more, it is forgotten."""
        line = self._lines.setdefault(scope, Line(time.monotonic()))
        params = {
            "worker_id": self._registry.instance_id(),
            "scope": scope,
            "limit": limit,
            "others": min(limit, others),
            "after": line.after,
        }
        rows = await self._db.query("take_parked", params)
        if rows:
            line.after = rows[-1].agent_id
            line.taken += len(rows)
        if len(rows) < limit:
            line.urgent = False
        if len(rows) < min(limit, others):
            del self._lines[scope]
        return claimed(rows, scope)

    async def _look(self, now: float) -> None:
        self._look_at = now + self._interval
        params = {"after": self._look_after, "limit": _MOST_LINES}
        rows = await self._db.query("parked_scopes", params)
        self._look_after = rows[-1].scope if len(rows) == _MOST_LINES else ""
        for row in rows:
            self.heard(row.scope, urgent=row.urgent)
        if now >= self._rescue_at:
            self._rescue_at = now + _STRANDED / 2
            [row] = await self._db.query("unpark_stranded", {"age": _STRANDED, "limit": _MOST_STRANDED})
            if row.unparked:
                log.warning(
                    "%d requests waited for over %g s for an answer that another was to bring; they ask for themselves",
                    row.unparked,
                    _STRANDED,
                )


def _ordinary(claims: list[Claim]) -> int:
    return sum(claim.told("priority") != "interactive" for claim in claims)
