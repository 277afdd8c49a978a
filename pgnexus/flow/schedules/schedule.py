"""Beside every run that nobody starts by hand: the schedules in the database, put, paused and looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal, get_args
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.errors import InvalidRequest, InvalidSchedule
from pgnexus.flow.schedules.cron import Cron
from pgnexus.storable import check

CatchUp = Literal["skip", "once", "all"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
_SLUG = re.compile(r"(?!run$)[A-Za-z_][A-Za-z0-9_]{0,127}")
_MOST_PREVIEWED = 1000


@dataclass(frozen=True)
class Schedule:
    """One schedule as it is stored."""

    name: str
    flow: str
    cron: str
    time_zone: str
    input: Any
    catch_up: CatchUp
    next_fire_at: datetime
    last_fire_at: datetime | None
    """The time for which it started its last run."""
    last_run_id: UUID | None
    paused_at: datetime | None
    created_at: datetime
    last_error: str | None
    """Why its last firing started nothing; None when it did."""


class Schedules:
    """What starts runs by the clock; every process with a `ScheduleFirer` sees to all of them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def put(
        self,
        name: str,
        flow: str,
        cron: str,
        *,
        time_zone: str = "UTC",
        input: Any = None,
        catch_up: CatchUp = "once",
        paused: bool | None = None,
    ) -> None:
        """Store a schedule under its name, or make the one of that name so; safe to do at every start.

        ``flow`` is a bare name: each firing starts the newest version. It need not be there yet. Every
        string ``"{scheduled_at}"`` in ``input`` becomes the time of the firing, in ISO 8601 and UTC.

        ``catch_up`` says what becomes of times at which no process was there to fire: ``skip`` drops
        those more than 60 seconds past, ``once`` starts one run for all of them (with the time of the last),
        ``all`` starts one for each, the oldest first. A schedule whose cron or zone changes begins anew from
        now. ``paused`` None leaves it as it is, a new one running. Raises `InvalidSchedule`.

            await Schedules(db).put("nightly", "report", "0 3 * * *", time_zone="Europe/Berlin")
        """
        _check(_NAME, "name", name, "1 to 128 letters, digits and _ . : / -, not beginning with a sign")
        _check(_SLUG, "flow", flow, "a flow's name: letters, digits and _, not beginning with a digit")
        if catch_up not in get_args(CatchUp):
            raise InvalidSchedule(f'catch_up: "{catch_up}" is none of {", ".join(get_args(CatchUp))}')
        try:
            check(input, "input")
        except InvalidRequest as error:
            raise InvalidSchedule(str(error)) from None
        timetable = Cron(cron, time_zone)
        params = {
            "name": name,
            "flow_slug": flow,
            "cron": cron,
            "time_zone": time_zone,
            "input": json.dumps(input),
            "catch_up": catch_up,
            "paused": paused,
            "next_fire_at": timetable.after(await self._now()),
        }
        await self._db.query("put_schedule", params)

    async def remove(self, name: str) -> bool:
        """Take a schedule away; its runs stay. False when there is none of that name."""
        return bool(await self._db.query("remove_schedule", {"name": name}))

    async def pause(self, name: str) -> bool:
        """Let it fire no more until `resume`. False when there is none of that name."""
        return bool(await self._db.query("pause_schedule", {"name": name}))

    async def resume(self, name: str) -> bool:
        """Let it fire again, from now on: what it did not fire meanwhile is no downtime to catch up on.

        False when there is none of that name.
        """
        while found := await self._db.query("find_schedules", {"name": name}):
            [row] = found
            if row.paused_at is None:
                return True
            params = {
                "name": name,
                "version": row.version,
                "next_fire_at": Cron(row.cron, row.time_zone).after(row.now),
            }
            if await self._db.query("resume_schedule", params):
                return True
        return False

    async def preview(self, cron: str, time_zone: str = "UTC", count: int = 5) -> Sequence[datetime]:
        """The next ``count`` times (1,000 at most) such a schedule fires, in its time zone."""
        if not 0 < count <= _MOST_PREVIEWED:
            raise InvalidSchedule(f"count: {count} is not within 1 and {_MOST_PREVIEWED}")
        timetable = Cron(cron, time_zone)
        times = timetable.times(await self._now())
        return [moment.astimezone(timetable.zone) for moment in islice(times, count)]

    async def list(self) -> Sequence[Schedule]:
        """All schedules, by name."""
        return [
            Schedule(
                name=row.name,
                flow=row.flow_slug,
                cron=row.cron,
                time_zone=row.time_zone,
                input=row.input,
                catch_up=row.catch_up,
                next_fire_at=row.next_fire_at,
                last_fire_at=row.last_fire_at,
                last_run_id=row.last_run_id,
                paused_at=row.paused_at,
                created_at=row.created_at,
                last_error=row.last_error,
            )
            for row in await self._db.query("find_schedules", {"name": None})
        ]

    async def _now(self) -> datetime:
        [row] = await self._db.query("schedule_clock")
        now: datetime = row.now
        return now


def _check(pattern: re.Pattern[str], field: str, text: str, wanted: str) -> None:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise InvalidSchedule(f"{field}: {text!r} is not {wanted}")
