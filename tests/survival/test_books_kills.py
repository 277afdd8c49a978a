"""Calls of a worker that is killed, frozen or told to leave are in the books, each once, and in the results."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from pgnexus.db.database import Database
from tests.survival.processes import up
from tests.survival.test_kills import FAST
from tests.system import running, sql, until

REQUESTS = 50
PRICES = {"openai/gpt-4o": {"input_price": "1", "output_price": "1"}}
# 11 tokens of prompt, as estimated, and the 40 that may be answered
RESERVED = Decimal("0.000051")


@pytest.fixture
def nexus_env(llmock: Any) -> dict[str, str]:
    """The environment of an `up` whose provider takes a second for each answer."""
    llmock.delay(1.0, times=None)
    return FAST | {
        "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": llmock.base_url("openai"),
        "PGNEXUS_MODELS": json.dumps(PRICES),
        "PGNEXUS_ROUTER_RETRIES": "0",
    }


def asked() -> list[dict[str, Any]]:
    one = {"complexity": "simple", "model": "gpt-4o", "messages": "question", "max_tokens": 40}
    return [one] * REQUESTS


async def noted(db: Database) -> bool:
    """Whether every call is in flight, and noted."""
    rows = await sql(db, "select calls from nexus.reservations")
    return sum(len(row.calls) for row in rows) >= REQUESTS


async def outcomes(db: Database) -> dict[str, int]:
    rows = await sql(db, "select outcome, count(*) as calls from nexus.attempts group by 1")
    return {row.outcome: row.calls for row in rows}


async def nothing_left(db: Database) -> bool:
    return not await sql(
        db, "select 1 as one from nexus.reservations union all select 1 from nexus.late_calls"
    )


async def same_sums(db: Database) -> None:
    """What the results tell is what the books say, request by request."""
    differing = await sql(
        db,
        """select j.request_id, j.cost, s.cost as books from pgnexus.job_results j
           cross join lateral nexus.sum_of_calls(j.request_id) s
           where (j.cost, j.prompt_tokens, j.completion_tokens, j.attempts)
             is distinct from (s.cost, s.prompt_tokens, s.completion_tokens, s.calls)""",
    )
    assert differing == []


async def test_calls_of_a_killed_worker_are_unknown_at_what_was_reserved(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    async with running(database_url, nexus=False) as service:
        async with up(database_url, "--only", "nexus", **nexus_env) as first:
            handles = await service.enqueue_many(asked())
            await until(lambda: noted(db))
            await first.kill()
        async with up(database_url, "--only", "nexus", **nexus_env):
            results = await asyncio.gather(*(handle.result(timeout=60) for handle in handles))
            await until(lambda: nothing_left(db))
    assert await outcomes(db) == {"unknown": REQUESTS, "success": REQUESTS}
    unknown = await sql(db, "select distinct cost, estimated from nexus.attempts where outcome = 'unknown'")
    assert [(row.cost, row.estimated) for row in unknown] == [(RESERVED, True)]
    for result in results:  # as they were first told, with no later correction
        assert result.cost is not None
        assert result.cost > RESERVED
        assert (result.attempts, result.estimated) == (2, True)
    await same_sums(db)
    # what is noted may not have begun yet when its worker dies
    assert REQUESTS <= len(llmock.requests) <= 2 * REQUESTS


async def test_a_frozen_worker_s_answers_take_the_place_of_the_unknown(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    async with (
        running(database_url, nexus=False) as service,
        up(database_url, "--only", "nexus", **nexus_env) as frozen,
    ):
        handles = await service.enqueue_many(asked())
        await until(lambda: noted(db))
        frozen.freeze()
        async with up(database_url, "--only", "nexus", **nexus_env):
            await asyncio.gather(*(handle.result(timeout=60) for handle in handles))
            assert await outcomes(db) == {"unknown": REQUESTS, "success": REQUESTS}
            frozen.thaw()
            await until(lambda: _none_unknown(db))
            await until(lambda: nothing_left(db))
    assert sum((await outcomes(db)).values()) == 2 * REQUESTS
    await same_sums(db)


async def _none_unknown(db: Database) -> bool:
    return "unknown" not in await outcomes(db)


async def test_calls_that_a_leaving_worker_gives_up_are_paid_for(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    impatient = nexus_env | {"PGNEXUS_DRAIN_TIMEOUT": "0"}
    async with running(database_url, nexus=False) as service:
        async with up(database_url, "--only", "nexus", **impatient) as first:
            handles = await service.enqueue_many(asked())
            await until(lambda: noted(db))
            assert await first.terminate() == 0
        assert await nothing_left(db)
        async with up(database_url, "--only", "nexus", **nexus_env):
            results = await asyncio.gather(*(handle.result(timeout=60) for handle in handles))
            await until(lambda: nothing_left(db))
    assert await outcomes(db) == {"cancelled": REQUESTS, "success": REQUESTS}
    assert {result.attempts for result in results} == {2}
    await same_sums(db)


async def test_cancelled_requests_are_told_what_their_calls_cost(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    async with (
        running(database_url, nexus=False) as service,
        up(database_url, "--only", "nexus", **nexus_env),
    ):
        handles = await service.enqueue_many(asked())
        await until(lambda: noted(db))
        await asyncio.gather(*(handle.cancel() for handle in handles))
        await until(lambda: _all_told(db))
    assert await outcomes(db) == {"cancelled": REQUESTS}
    await same_sums(db)


async def _all_told(db: Database) -> bool:
    [row] = await sql(db, "select count(cost) as told from pgnexus.job_results")
    return bool(row.told == REQUESTS)
