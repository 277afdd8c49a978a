"""Workers of flows that are killed, frozen and told to leave: every run ends once, with the right output."""

from __future__ import annotations

import os

import pytest
from processes import up
from system import sql, until

from pgnexus.db.database import Database
from pgnexus.flow.runs.executor import Executor
from tests.flow.running import started

ITEMS = 200
FLOWS = ("--only", "flows", "--flow", "tests.flow.a_flow:letters")
FAST = {
    "PGNEXUS_WORKER_LEASE": "1",
    "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
    "PGNEXUS_POLL_INTERVAL": "1",
    "PGNEXUS_DRAIN_TIMEOUT": "10",
    "PGNEXUS_FLOW_CONCURRENCY": "10",
    "PYTHONPATH": os.getcwd(),
}


async def under_way(executor: Executor, db: Database):
    """A run of which something is done and something is not."""
    handle = await executor.start("letters", ITEMS)

    async def some():
        [row] = await sql(
            db,
            "select count(*) filter (where status = 'completed') as done, count(*) as tasks from pgflow.step_tasks"
            " where run_id = %s and step_slug = 'item'",
            handle.run_id,
        )
        return row.tasks == ITEMS and row.done >= 20

    await until(some)
    assert (await handle.status()).status == "started"
    return handle


async def check(handle, db: Database) -> None:
    """The run has ended well, and every task of it once."""
    assert await handle.result(timeout=60) == {"total": sum(range(ITEMS))}
    rows = await sql(db, "select status, count(*) as tasks from pgflow.step_tasks group by 1")
    assert [(row.status, row.tasks) for row in rows] == [("completed", ITEMS + 2)]
    assert await sql(db, "select 1 from pgmq.q_letters") == []


async def test_what_a_killed_worker_held_is_done_by_another(database_url, db):
    async with started(database_url) as app, up(database_url, *FLOWS, **FAST) as first:
        handle = await under_way(app.executor, db)
        async with up(database_url, *FLOWS, **FAST):
            await first.kill()
            await check(handle, db)


async def test_a_frozen_worker_that_comes_back_spoils_nothing(database_url, db):
    async with started(database_url) as app, up(database_url, *FLOWS, **FAST) as first:
        handle = await under_way(app.executor, db)
        async with up(database_url, *FLOWS, **FAST):
            first.freeze()
            await check(handle, db)
            first.thaw()
            again = await app.executor.start("letters", ITEMS, key="again")
            assert await again.result(timeout=60) == {"total": sum(range(ITEMS))}
        last = await app.executor.start("letters", 3)  # the one that came back works on
        assert await last.result(timeout=60) == {"total": 3}


async def test_a_worker_that_is_told_to_leave_finishes_what_it_runs(database_url, db):
    async with started(database_url) as app, up(database_url, *FLOWS, **FAST) as first:
        handle = await under_way(app.executor, db)
        assert await first.terminate() == 0
        rows = await sql(
            db, "select status, max(attempts_count) as attempts from pgflow.step_tasks group by 1"
        )
        assert {row.status: row.attempts for row in rows} == {"completed": 1, "queued": 0}
        async with up(database_url, *FLOWS, **FAST):
            await check(handle, db)


@pytest.mark.timeout(180)
async def test_a_restart_of_the_connections_of_all_is_survived(database_url, db):
    async with started(database_url) as app, up(database_url, *FLOWS, **FAST):
        handle = await under_way(app.executor, db)
        for _ in range(3):
            await sql(
                db,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and application_name like 'pgnexus%%'",
            )
        await until(lambda: _ended(db))
        await check(app.executor.handle(handle.run_id), db)


async def _ended(db: Database) -> bool:
    [row] = await sql(db, "select count(*) as running from pgflow.runs where status = 'started'")
    return bool(row.running == 0)
