"""Plans that were made while the tables were empty do when they are full: what a transaction reads does not grow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from system import sql

from pgnexus.db.database import Database
from tests.nexus.gates import register

TABLES = ("parked", "flights", "answers", "reservations", "streams", "chunks", "attempts")
ANSWER = {"status": "success", "response": "Hi", "usage": {}, "attempts": 1}
CALL = {
    "call": 1,
    "provider": "openai",
    "model": "m",
    "outcome": "success",
    "started_at": "2026-11-22T00:00:00Z",
    "duration_ms": 1,
}
FULL = """
with r as (
  insert into pgflow.runs (run_id, flow_slug, status, input)
  select gen_random_uuid(), 'llm_request_workflow', 'started', '{}' from generate_series(1, 20000) returning run_id
), p as (
  insert into nexus.parked (run_id, scope, lane, agent_id, since, step_slug)
  select run_id, 'xai', 1, left(run_id::text, 2), now(), 'validate' from r
), s as (
  insert into nexus.streams (request_id, claim, attempt) select run_id, run_id, 1 from r
), c as (
  insert into nexus.chunks (request_id, number, text) select run_id, 1, 'x' from r
), f as (
  insert into nexus.flights (key, request_id) select uuid_send(run_id), run_id from r
), k as (
  insert into nexus.answers (key, answer, gone_at) select uuid_send(run_id), '{}', now() + interval '1 h' from r
)
insert into nexus.attempts (request_id, attempt, call, instance_id, provider, model, outcome, started_at, duration_ms)
select run_id, 1, 1, run_id, 'a', 'b', 'success', now(), 1 from r
"""
READ = """
select (select sum(seq_tup_read) from pg_stat_user_tables) + (select sum(idx_tup_read) from pg_stat_user_indexes)
"""


class Worker:
    """Takes, parks, ends and cancels requests by the functions alone, on one connection."""

    def __init__(self, db: Database, instance: UUID) -> None:
        self._db = db
        self._instance = instance

    async def round(self) -> None:
        sent = [
            json.dumps({"request_id": str(uuid4()), "messages": [{"role": "user", "content": "x"}]})
            for _ in range(12)
        ]
        await sql(self._db, "select pgmq.send_batch('ai_requests', %s::text[]::jsonb[])", sent)
        taken = await self._query("take_requests", worker_id=self._instance, limit=12, others=12)
        for row in taken[:2]:
            asked = {"key": uuid4().bytes, "kept": True, "flight": True}
            await self._query("look_up_answer", request_id=row.run_id, **asked)
        saving = {"key": uuid4().hex, "ttl": 60, "answer": {"text": "Hi"}}
        await self._settle(taken[:2], "success", result=ANSWER, saving=saving, calls=[CALL])
        await self._settle(taken[2:4], "success", result=ANSWER, calls=[CALL])
        await self._settle(taken[4:6], "failed", error="no", details={"status": "failed"}, calls=[CALL])
        await self._settle(taken[6:8], "park", scope="openai")
        await self._settle(taken[8:10], "park", scope="flight:00")
        await self._query("cancel", request_ids=[row.run_id for row in taken[8:]])
        few = {"limit": 2, "others": 2, "after": ""}
        await self._query("take_parked", worker_id=self._instance, scope="openai", **few)
        await self._query("prune_chunks", ttl=600.0, limit=50)
        await self._query("prune_answers", limit=50)
        await self._stream(taken[0].run_id)

    async def _stream(self, request_id: UUID) -> None:
        flush = {"request_ids": [request_id], "claims": [uuid4()], "attempts": [1], "numbers": [None]}
        said = {"discards": [False], "texts": ["Hi"], "reasonings": [""], "tool_calls": [None]}
        await self._query("store_chunks", **flush, **said)

    async def _settle(self, rows: list[Any], outcome: str, **more: Any) -> None:
        items = [
            {
                "run_id": str(row.run_id),
                "step": row.step_slug,
                "attempt": row.attempt,
                "outcome": outcome,
                "calls": [],
            }
            for row in rows
        ]
        texts = [json.dumps(item | more) for item in items]
        await self._query("settle", worker_id=self._instance, items=texts, notify=True)

    async def _query(self, name: str, **params: Any) -> list[Any]:
        return await self._db.query(name, params)


async def rows_read(db: Database) -> int:
    await sql(db, "select pg_stat_force_next_flush()")
    [(count,)] = await sql(db, READ)
    return int(count)


@pytest.fixture
async def alone(database_url) -> AsyncIterator[Database]:
    """One connection, whose plans are kept."""
    db = await Database.open(database_url, pool_size=1)
    yield db
    await db.close()


async def test_what_is_read_does_not_grow_with_the_tables(alone):
    worker = Worker(alone, await register(alone))
    for table in TABLES:
        await sql(alone, f"vacuum analyze nexus.{table}")  # at their emptiest
    for _ in range(8):  # past the first five runs a plan is kept
        await worker.round()
    await sql(alone, FULL)
    before = await rows_read(alone)
    await worker.round()
    assert await rows_read(alone) - before < 20_000
