"""What users of other routers complain of, where no other test has it; docs/guarantees.md lists them all."""

from __future__ import annotations

import asyncio
from collections import Counter

import psycopg
import pytest
from aiohttp import web
from provider_server import answer, served
from system import running, sql, until

from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable


async def test_nothing_is_stuck_after_a_fallback(database_url, db):
    """One vendor fails in every way, the next one answers: all have their result, and nothing is left over."""
    asked: Counter[str] = Counter()
    faults = iter(range(10**6))

    async def vendor(request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        asked[model] += 1
        if model == "good":
            return web.json_response(answer("Hi."))
        status, body = [(500, "{}"), (200, "rubbish"), (200, '{"choices": []}'), (401, "{}"), (404, "{}")][
            next(faults) % 5
        ]
        return web.Response(text=body, status=status, content_type="application/json")

    async with served(vendor) as url:
        providers = {name: {"base_url": url, "needs_key": False} for name in ("first", "second")}
        settings = {
            "providers": providers,
            "routes": {"simple": ["first/bad", "second/good"]},
            "breaker_failures": 1000,
        }
        async with running(database_url, **settings) as llm:
            handles = await llm.enqueue_many([{"messages": "Hello", "complexity": "simple"}] * 200)
            results = await asyncio.gather(*(handle.result(60) for handle in handles))
    assert {(result.text, result.provider, result.attempts) for result in results} == {("Hi.", "second", 2)}
    assert asked == {"bad": 200, "good": 200}
    assert await sql(db, "select distinct status from pgnexus.job_results") == [("success",)]
    assert await sql(db, "select distinct status from pgflow.step_tasks") == [("completed",)]
    assert await sql(db, "select count(*) from nexus.attempts where outcome <> 'success'") == [(200,)]
    assert await sql(db, "select count(*) from nexus.parked") == [(0,)]


async def test_a_database_without_a_free_connection_is_no_wrong_key(database_url, db):
    await sql(db, "drop role if exists crowded_app")
    await sql(db, "create role crowded_app login connection limit 2 in role pgnexus_caller")
    crowded = database_url.replace("postgres@", "crowded_app@", 1)
    others = [psycopg.connect(crowded) for _ in range(2)]
    try:
        with pytest.raises(DatabaseUnavailable, match="too many connections") as raised:
            await Database.open(crowded)
        assert raised.value.retryable
        others.pop().close()

        async def has_room() -> bool:
            rows = await sql(db, "select count(*) from pg_stat_activity where usename = 'crowded_app'")
            return rows[0][0] < 2

        await until(has_room)
        await (await Database.open(crowded, pool_size=1)).close()
    finally:
        for other in others:
            other.close()
        await sql(db, "drop role crowded_app")
