"""Beside a test: time passes for what waits in the database, and for nothing else."""

from __future__ import annotations

import math
from datetime import timedelta

from pgnexus.db.database import Database
from pgnexus.db.queries import load
from pgnexus.errors import ServiceMisused
from pgnexus.flow.work.outcomes import TASKS_CHANNEL
from pgnexus.messages import REQUESTS_CHANNEL, RESULTS_CHANNEL
from pgnexus.testing.calendar import advance_schedules
from pgnexus.testing.target import Target, database_of

_MOST = 1000


async def advance(target: Target, by: timedelta | float) -> None:
    """Let ``by`` (seconds, or a timedelta) pass for everything that waits in this database.

    Retries and delays come nearer, deadlines, waits for signals and idempotency keys nearer to their end,
    schedules fire. What is due by that is on its queue when this returns, and what is overdue has failed; `drain`
    waits for what comes of it. No clock is touched: timeouts of handlers and of provider calls under way go on as
    they were, and workers are taken for as alive as they are. The role needs the rights of the schema's owner.

        await advance(executor, timedelta(hours=1))
        await drain(executor)
    """
    seconds = by.total_seconds() if isinstance(by, timedelta) else by
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ServiceMisused(f"advance by {by!r}: give seconds, or a timedelta, of more than 0")
    async with database_of(target) as db:
        async with db.connection() as connection, connection.transaction():
            await connection.execute(load("set_moved_by"), {"seconds": seconds})
            await connection.execute(load("move_clock"))
            await advance_schedules(connection, timedelta(seconds=seconds))
        await _bring_about(db)


async def _bring_about(db: Database) -> None:
    """Do what the loops would do when they look the next time, and have them look."""
    while (await db.query("send_due_tasks", {"limit": _MOST}))[0].sent == _MOST:
        pass
    while (await db.query("expire_deferred", {"limit": _MOST}))[0].expired == _MOST:
        pass
    while _MOST in (await db.query("sweep", {"limit": _MOST, "all": False}))[0][:2]:
        pass
    for channel in (TASKS_CHANNEL, REQUESTS_CHANNEL, RESULTS_CHANNEL):
        await db.query("notify", {"channel": channel, "payload": ""})
