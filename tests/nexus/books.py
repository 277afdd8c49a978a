"""What tests of the books share: workers that hold requests, and what they settle, in plain SQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from pgnexus.db.database import Database
from tests.system import put, sql


async def worker(db: Database) -> UUID:
    """A worker that gives signs of life."""
    worker_id = uuid4()
    await sql(
        db, "select pgflow.heartbeat(%s, 'llm_request_workflow', 'a test', interval '1 hour')", worker_id
    )
    return worker_id


async def dies(db: Database, worker_id: UUID) -> None:
    """It is taken for dead."""
    await sql(db, "update pgflow.workers set stopped_at = now() where worker_id = %s", worker_id)


async def request(db: Database, **over: Any) -> UUID:
    """A request on its lane, accepted by the caller's side."""
    request_id = uuid4()
    message = {"request_id": str(request_id), "messages": [{"role": "user", "content": "Hello"}]} | over
    await sql(db, "insert into pgnexus.job_results (request_id, status) values (%s, 'enqueued')", request_id)
    await put(db, "ai_requests", json.dumps(message))
    return request_id


async def take(db: Database, worker_id: UUID) -> Any:
    """The next request for this worker."""
    [row] = await sql(db, "select * from nexus.take_requests(%s, 1, 1)", worker_id)
    return row


def call(number: int = 1, **over: Any) -> dict[str, Any]:
    """A call as a settlement tells it."""
    return {
        "call": number,
        "provider": "openai",
        "model": "gpt-4o",
        "outcome": "success",
        "started_at": datetime.now(UTC).isoformat(),
        "duration_ms": 5,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cost": "0.01",
    } | over


def item(claim: Any, outcome: str, *calls: dict[str, Any], **over: Any) -> dict[str, Any]:
    """One item of nexus.settle, as the worker makes it: what it reports is the sum of its own calls."""
    told = {"request_id": str(claim.run_id), "status": "success" if outcome == "success" else "failed"}
    told |= {"attempts": len(calls), "response": "Hi"} if outcome == "success" else {"attempts": len(calls)}
    told["usage"] = {
        name: sum(one.get(name, 0) for one in calls)
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
    }
    told["cost"] = str(sum(float(one["cost"] or 0) for one in calls))
    told["error"] = {"type": "provider_unavailable", "message": "no", "retryable": True}
    return {
        "run_id": str(claim.run_id),
        "step": claim.step_slug,
        "attempt": claim.attempt,
        "outcome": outcome,
        "delay": 0,
        "calls": list(calls),
        "result" if outcome == "success" else "details": told,
        "error": "no",
    } | over


async def settle(db: Database, worker_id: UUID, *items: dict[str, Any]) -> list[UUID]:
    rows = await sql(
        db,
        "select run_id from nexus.settle(%s, %s::text[]::jsonb[]) as run_id",
        worker_id,
        [json.dumps(one) for one in items],
    )
    return [row.run_id for row in rows]


async def reserve(db: Database, worker_id: UUID, number: int, *calls: list[Any]) -> None:
    """Note calls in flight, each as `noted` makes them."""
    await sql(db, "select nexus.reserve(%s, %s, %s::json, '{}', '{}')", worker_id, number, json.dumps(calls))


def noted(claim: Any, number: int = 1, *, cost: str | None = "0.5", charges: Any = ()) -> list[Any]:
    """What is noted of a call before it."""
    began = datetime.now(UTC).isoformat()
    where = [str(claim.run_id), claim.attempt, number, began, "openai", "gpt-4o"]
    return [*where, 100, 1000, cost, list(charges)]


async def attempts(db: Database, request_id: UUID) -> list[Any]:
    return await sql(
        db,
        "select * from nexus.attempts where request_id = %s order by attempt, call, instance_id",
        request_id,
    )


async def stored(db: Database, request_id: UUID) -> Any:
    """The request's row on the caller's side, after all results have come."""
    await sql(db, "select * from pgnexus.take_results('ai_results', 1000)")
    [row] = await sql(db, "select * from pgnexus.job_results where request_id = %s", request_id)
    return row
