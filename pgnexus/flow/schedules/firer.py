"""Before the first step of a run that nobody starts by hand: its schedule's time has come."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import InvalidSchedule
from pgnexus.flow.schedules.cron import Cron
from pgnexus.looper import Looper
from pgnexus.printable import one_line

log = logging.getLogger(__name__)

SCHEDULES_CHANNEL = "pgflow_schedules"
GRACE = timedelta(seconds=60)
_MOST_SCHEDULES = 200
_MOST_RUNS = 1000  # a round starts, so that no transaction is long
_TICK = timedelta(microseconds=1)


class Firing(NamedTuple):
    """What a schedule has to do now: ``due`` are the times to start a run for, ``then`` is when it is next."""

    name: str
    version: str
    due: list[datetime]
    then: datetime


class ScheduleFirer:
    """A loop that any number of processes run: each firing is one transaction, and one of them wins it.

    Nothing is locked while Python thinks: who finds a schedule changed since he looked fires nothing. So a
    process that freezes holds up nobody.
    """

    def __init__(self, db: Database, listener: Listener | None = None, *, poll_interval: float = 5.0) -> None:
        self._db = db
        self._poll_interval = poll_interval
        self._looper = Looper("schedule firer", self._round, poll_interval=poll_interval)
        if listener is not None:
            listener.subscribe(SCHEDULES_CHANNEL, lambda _: self._looper.wake())

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _round(self) -> float | None:
        params = {"horizon": self._poll_interval, "limit": _MOST_SCHEDULES}
        rows = await self._db.query("due_schedules", params)
        due = [row for row in rows if row.next_fire_at <= row.now]
        waits: list[float] = [(row.next_fire_at - row.now).total_seconds() for row in rows[len(due) :]]
        firings = []
        for row in due:
            try:
                firings.append(plan(row, _MOST_RUNS // len(due)))
            except InvalidSchedule as error:  # was not stored by `Schedules`
                await self._refuse(row, str(error))
        fired = await self._fire(firings) if firings else set()
        waits += [(firing.then - due[0].now).total_seconds() for firing in firings if firing.name in fired]
        if len(due) == _MOST_SCHEDULES:
            return 0
        return max(0.0, min([self._poll_interval, *waits]))

    async def _fire(self, firings: list[Firing]) -> set[str]:
        """Start what is due; the names of those schedules that this process has won."""
        params = {
            "names": [firing.name for firing in firings],
            "versions": [firing.version for firing in firings],
            "next_fire_ats": [firing.then for firing in firings],
            "due_names": [firing.name for firing in firings for _ in firing.due],
            "due": [moment for firing in firings for moment in firing.due],
        }
        rows = await self._db.query("fire_schedules", params)
        for row in rows:
            if row.is_news:
                log.error("schedule %s: started nothing: %s", row.name, one_line(row.error))
        return {row.name for row in rows}

    async def _refuse(self, row: Any, error: str) -> None:
        params = {"name": row.name, "version": row.version, "error": error}
        for refused in await self._db.query("refuse_schedule", params):
            if refused.is_news:
                log.error("schedule %s: makes no sense: %s", row.name, one_line(error))


def plan(row: Any, most: int) -> Firing:
    """What a schedule's catch-up rule makes of the times from its next one until now."""
    cron = Cron(row.cron, row.time_zone)
    first, now = row.next_fire_at, row.now
    if row.catch_up == "once":
        return Firing(row.name, row.version, [cron.latest(first, now)], cron.after(now))
    times: Iterator[datetime] = chain([first], cron.times(first))
    if row.catch_up == "skip" and first < now - GRACE:
        times = cron.times(now - GRACE - _TICK)
    due: list[datetime] = []
    for moment in times:
        if moment > now or len(due) == most:
            break
        due.append(moment)
    return Firing(row.name, row.version, due, moment)
