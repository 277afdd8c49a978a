"""Beside a test: the moment at which nothing can run any more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.queries import load
from pgnexus.flow.work.outcomes import RUNS_CHANNEL, TASKS_CHANNEL
from pgnexus.messages import DONE_CHANNEL, REQUESTS_CHANNEL, RESULTS_CHANNEL
from pgnexus.testing.target import Target, database_of

_CHANNELS = (RUNS_CHANNEL, TASKS_CHANNEL, REQUESTS_CHANNEL, RESULTS_CHANNEL, DONE_CHANNEL)
_POLL = 1.0  # seconds; where no NOTIFY arrives
_GATHER = 0.01  # seconds in which what happens at once is one reason to look


@dataclass(frozen=True, slots=True)
class Idle:
    """What still waits when nothing can run: for a time, for somebody, or until it is resumed.

    ``delayed`` are tasks (retries, start_delay), ``signals`` and ``llm`` tasks that wait for these, ``requests`` and
    ``schedules`` what is scheduled, ``paused`` the tasks of paused flows.
    """

    delayed: int
    signals: int
    llm: int
    requests: int
    schedules: int
    paused: int


async def drain(target: Target, *, timeout: float = 30.0) -> Idle:
    """Wait until nothing in this database can run now: no task, no request, no result is on its way.

    What waits for a time (see `advance`) or for a signal does not count, and is told of. Raises TimeoutError after
    ``timeout`` seconds, naming what is still busy: often a flow that no worker here runs.

        await executor.start(review, {"repo": "…"})
        assert (await drain(executor)).signals == 1
    """
    async with database_of(target) as db:
        changed = asyncio.Event()
        listener = Listener(db.url, connect_timeout=5.0, probe_url=db.url)
        for channel in _CHANNELS:
            listener.subscribe(channel, lambda _: changed.set())
        await listener.start()
        busy: str | None = "nothing was looked at"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    changed.clear()
                    busy, idle = await _look(db)
                    if busy is None:
                        return idle
                    await _wait(changed)
        except TimeoutError:
            raise TimeoutError(f"not idle within {timeout:g} s: {busy}") from None
        finally:
            await listener.stop()


async def _look(db: Database) -> tuple[str | None, Idle]:
    async with db.connection() as connection, connection.transaction():
        await connection.execute(load("freeze_snapshot"))  # or what moves meanwhile may be seen nowhere
        [row] = await (await connection.execute(load("drain_state"), {})).fetchall()
    counts = (row.delayed, row.signals, row.llm, row.requests, row.schedules, row.paused)
    return row.busy, Idle(*(int(count) for count in counts))


async def _wait(changed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_POLL):
            await changed.wait()
            await asyncio.sleep(_GATHER)
    except TimeoutError:
        pass
