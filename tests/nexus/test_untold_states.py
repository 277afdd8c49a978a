"""A request's steps are those of its run until somebody has more to tell of them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

from pgnexus.db.database import Database
from tests.nexus.gates import bury, register
from tests.system import put, sql

STEPS = ["validate", "route_llm", "publish_result", "track_metrics"]
ANSWER = {"status": "success", "response": "Hi", "usage": {}, "attempts": 0}


async def taken(db: Database) -> tuple[UUID, UUID]:
    """A worker, and the request that it has taken up."""
    worker = await register(db)
    await put(
        db,
        "ai_requests",
        json.dumps({"request_id": str(uuid4()), "messages": [{"role": "user", "content": "x"}]}),
    )
    [row] = await db.query("take_requests", {"worker_id": worker, "limit": 1, "others": 1})
    return worker, row.run_id


async def settle(db: Database, worker: UUID, run_id: UUID, attempt: int = 1, **item: Any) -> None:
    text = json.dumps({"run_id": str(run_id), "step": "validate", "attempt": attempt, "calls": [], **item})
    assert len(await db.query("settle", {"worker_id": worker, "items": [text], "notify": True})) == 1


async def stored(db: Database, run_id: UUID) -> list[str]:
    return [
        row.status for row in await sql(db, "select status from pgflow.step_states where run_id = %s", run_id)
    ]


async def told(db: Database, run_id: UUID) -> list[tuple[str, str]]:
    """What there is to see of the run's steps, by both ways to see it."""
    rows = await db.query("run_status", {"run_id": run_id})
    [run] = await sql(db, "select pgflow.get_run_with_states(%s) as run", run_id)
    seen = [(row.step_slug, row.step_status) for row in rows]
    assert [(step["step_slug"], step["status"]) for step in run.run["steps"]] == seen
    return seen


async def test_a_request_that_succeeds_stores_none(db):
    worker, run_id = await taken(db)
    assert await told(db, run_id) == list(zip(STEPS, ["started", *["created"] * 3], strict=True))
    await settle(db, worker, run_id, outcome="success", result={"request_id": str(run_id), **ANSWER})
    assert await told(db, run_id) == [(step, "completed") for step in STEPS]
    for row in await db.query("run_status", {"run_id": run_id}):
        assert row.step_started_at is not None
        assert row.step_ended_at == row.ended_at
    assert await stored(db, run_id) == []


async def test_one_that_fails_stores_where(db):
    worker, run_id = await taken(db)
    await settle(db, worker, run_id, outcome="failed", error="no", details={"status": "failed"})
    assert sorted(await stored(db, run_id)) == ["created", "created", "created", "failed"]
    assert (await told(db, run_id))[0] == ("validate", "failed")
    [row, *_] = await db.query("run_status", {"run_id": run_id})
    assert row.step_error == "no"


async def test_one_that_is_cancelled_stores_where(db):
    _, run_id = await taken(db)
    assert len(await sql(db, "select pgflow.cancel_runs(array[%s])", run_id)) == 1
    assert (await told(db, run_id))[0] == ("validate", "failed")
    assert sorted(await stored(db, run_id)) == ["created", "created", "created", "failed"]


async def test_one_whose_worker_is_lost_is_taken_up_again(db):
    worker, run_id = await taken(db)
    await bury(db, worker)
    assert [row.exhausted for row in await sql(db, "select exhausted from pgflow.recover_tasks()")] == [False]
    another = await register(db)
    [row] = await db.query("take_requests", {"worker_id": another, "limit": 1, "others": 1})
    assert (row.run_id, row.attempt) == (run_id, 2)
    await settle(
        db, another, run_id, attempt=2, outcome="success", result={"request_id": str(run_id), **ANSWER}
    )
    assert await told(db, run_id) == [(step, "completed") for step in STEPS]


async def test_one_whose_last_worker_is_lost_fails(db):
    worker, run_id = await taken(db)
    await sql(db, "update pgflow.step_tasks set requeued_count = 4 where run_id = %s", run_id)
    await bury(db, worker)
    assert [row.exhausted for row in await sql(db, "select exhausted from pgflow.recover_tasks()")] == [True]
    assert (await told(db, run_id))[0] == ("validate", "failed")
    [run] = await sql(db, "select status from pgflow.runs where run_id = %s", run_id)
    assert run.status == "failed"


async def test_one_that_waits_for_its_retry_comes_back(db):
    worker, run_id = await taken(db)
    await settle(db, worker, run_id, outcome="retry", error="busy", delay=0.001)
    [row] = await sql(db, "select sent from pgflow.send_due_tasks() where pg_sleep(0.01) is not null")
    assert row.sent == 1
    [row] = await db.query("take_requests", {"worker_id": worker, "limit": 1, "others": 1})
    assert (row.run_id, row.attempt) == (run_id, 2)


async def test_steps_that_an_earlier_version_stored_end_with_their_run(db):
    worker, run_id = await taken(db)
    await sql(db, "select pgflow.tell_states(array[%s])", run_id)
    await settle(db, worker, run_id, outcome="success", result={"request_id": str(run_id), **ANSWER})
    assert await stored(db, run_id) == ["completed"] * 4
