"""Beside a test: schedules fire for the times that have passed, each under its own.

A schedule's times are those of a calendar, so its row cannot just be moved: the same time would fire twice, which
the engine refuses. Here its calendar is ahead of the database's clock by all that was advanced.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pgnexus.db.connection import Connection
from pgnexus.db.queries import load
from pgnexus.flow.schedules.firer import Firing, plan

_MOST_RUNS = 1000  # a schedule starts for one time that was missed

# How far a schedule's calendar is ahead, by database and schedule, as long as its row is as it was left here.
_ahead: dict[tuple[str, str], tuple[datetime, timedelta]] = {}


class _Due(NamedTuple):
    """A schedule as its firer sees it, by its own calendar."""

    name: str
    version: str
    cron: str
    time_zone: str
    catch_up: str
    next_fire_at: datetime
    now: datetime


async def advance_schedules(connection: Connection, by: timedelta) -> None:
    """Fire what is due within ``by``; all schedules' next times come nearer by it."""
    [row] = await _fetch(connection, "home")
    home: str = row.home
    moved: set[str] = set()
    while True:  # those that a firer fired meanwhile are looked at again
        rows = await _fetch(connection, "find_schedules", {"name": None})
        left = [row for row in rows if row.paused_at is None and row.name not in moved]
        if not left:
            return
        moved |= await _move(connection, home, left, by)


async def _move(connection: Connection, home: str, rows: list[Any], by: timedelta) -> set[str]:
    firings: list[Firing] = []
    aheads: dict[str, timedelta] = {}
    for row in rows:
        left_at, ahead = _ahead.get((home, row.name), (None, timedelta(0)))
        if left_at != row.next_fire_at:
            ahead = timedelta(0)
        firing = _fire(row, ahead, by)
        firings.append(firing._replace(then=firing.then - ahead - by))
        aheads[row.name] = ahead + by
    params = {
        "names": [firing.name for firing in firings],
        "versions": [firing.version for firing in firings],
        "next_fire_ats": [firing.then for firing in firings],
        "due_names": [firing.name for firing in firings for _ in firing.due],
        "due": [moment for firing in firings for moment in firing.due],
    }
    done = {row.name for row in await _fetch(connection, "fire_schedules", params)}
    for firing in firings:
        if firing.name in done:
            _ahead[home, firing.name] = (firing.then, aheads[firing.name])
    return done


def _fire(row: Any, ahead: timedelta, by: timedelta) -> Firing:
    """What the schedule has to do until its calendar is at the new time."""
    now = row.now + ahead + by
    due: list[datetime] = []
    then = row.next_fire_at + ahead
    while then <= now:
        seen = _Due(row.name, row.version, row.cron, row.time_zone, row.catch_up, then, now)
        firing = plan(seen, _MOST_RUNS)
        due += firing.due
        then = firing.then
    return Firing(row.name, row.version, due, then)


async def _fetch(connection: Connection, name: str, params: dict[str, Any] | None = None) -> list[Any]:
    return await (await connection.execute(load(name), params)).fetchall()
