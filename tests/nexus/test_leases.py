"""Recovery: each instance is judged by its own lease, whoever asks."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import pytest
from system import put, sql, started

from pgnexus.db.database import Database


async def takes_one(db: Database, lease: str | None, silent_for: str) -> UUID:
    """A worker that told this lease, holds one request and has given no sign of life for so long."""
    worker, request_id = uuid4(), uuid4()
    await sql(
        db, "select pgflow.heartbeat(%s, 'llm_request_workflow', 'a test', %s::interval)", worker, lease
    )
    await put(db, "ai_requests", json.dumps({"request_id": str(request_id), "messages": "Hello"}))
    [row] = await sql(db, "select run_id from nexus.take_requests(%s, 1, 1)", worker)
    assert row.run_id == request_id
    await sql(
        db,
        "update pgflow.workers set last_heartbeat_at = now() - %s::interval where worker_id = %s",
        silent_for,
        worker,
    )
    return request_id


async def recovered(db: Database) -> list[UUID]:
    return [row.run_id for row in await sql(db, "select run_id from pgflow.recover_tasks()")]


@pytest.mark.parametrize(
    ("lease", "silent_for", "lost"),
    [("0 s", "1 s", True), ("1 hour", "59 minutes", False), (None, "5 s", False)],
)
async def test_a_worker_is_lost_after_its_own_lease(db, lease, silent_for, lost):
    request_id = await takes_one(db, lease, silent_for)
    assert await recovered(db) == ([request_id] if lost else [])


async def test_one_that_told_no_lease_is_judged_by_its_tasks_time(db):
    request_id = await takes_one(db, None, "1 hour")
    assert await recovered(db) == []
    await sql(db, "update pgflow.step_tasks set started_at = now() - interval '2 hours'")
    [row] = await sql(db, "select pgflow.requeue_stalled_tasks() as requeued")
    assert row.requeued == 1
    [task] = await sql(db, "select run_id, status from pgflow.step_tasks")
    assert (task.run_id, task.status) == (request_id, "queued")


async def test_a_nexus_with_a_short_lease_steals_nothing_from_its_neighbours(database_url, db):
    await takes_one(db, "1 hour", "5 minutes")
    async with started(database_url, worker_lease=0.5, heartbeat_interval=0.1) as app:
        await app.nexus._recovery._round()
        [task] = await sql(db, "select status from pgflow.step_tasks where status = 'started'")
        assert task.status == "started"
        assert await app.service.live_instances() == 2
        [row] = await sql(
            db, "select lease from pgflow.workers where worker_id = %s", app.nexus.registry.instance_id()
        )
        assert row.lease.total_seconds() == 0.5
