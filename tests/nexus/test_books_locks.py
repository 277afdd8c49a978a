"""The books while all write to them at once: nobody waits in a circle, and each call is there once and charged once."""

from __future__ import annotations

import asyncio
import json
import random
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from pgnexus.db.database import Database
from tests.nexus.books import call, dies, item, noted, request, reserve, worker
from tests.system import sql

REQUESTS = 60
HOLDERS = 3
CHARGE = {"scope": "agent:a", "kind": "usd_per_day", "period": "2030-01-01", "reserved": "0.5"}
ACTUAL = CHARGE | {"actual": "0.25"}


@pytest.mark.parametrize("seed", range(3))
async def test_thawing_burying_settling_and_cancelling_at_once(
    database_url: str, db: Database, seed: int
) -> None:
    luck = random.Random(seed)
    crowd = await Database.open(database_url, pool_size=12)
    holders = [await worker(db) for _ in range(HOLDERS)]
    others = [await worker(db) for _ in range(2)]
    claims = await _held(db, holders)
    for holder in holders:
        await dies(db, holder)
    await sql(db, "select * from pgflow.recover_tasks()")

    async def thaw(holder: Any) -> None:
        """What it had in flight it settles, in batches, some of them twice."""
        batches = _batches(luck, claims[holder])
        for batch in [*batches, luck.choice(batches)]:
            await _settle(crowd, holder, batch)

    async def bury() -> None:
        for _ in range(6):
            await sql(crowd, "select * from nexus.bury()")
            await sql(crowd, "select nexus.amend_results(20)")

    async def serve(other: Any) -> None:
        for _ in range(30):
            taken = await sql(crowd, "select * from nexus.take_requests(%s, 7, 7)", other)
            await _settle(crowd, other, [_ended(claim) for claim in taken])

    async def cancel() -> None:
        ids = [claim.run_id for held in claims.values() for claim in held]
        for request_id in luck.sample(ids, 10):
            await sql(crowd, "select nexus_api.cancel(%s)", [request_id])

    frozen = holders[:2]  # the last one stays dead
    await asyncio.gather(
        *(thaw(holder) for holder in frozen), bury(), bury(), *(serve(other) for other in others), cancel()
    )
    await _finish(crowd, others[0])

    rows = await sql(db, "select request_id, instance_id, outcome, cost from nexus.attempts")
    assert len({(row.request_id, row.instance_id) for row in rows}) == len(rows)
    by_holder = {holder: [row for row in rows if row.instance_id == holder] for holder in holders}
    assert {len(found) for found in by_holder.values()} == {REQUESTS // HOLDERS}
    assert {row.outcome for holder in frozen for row in by_holder[holder]} == {"success"}
    assert {row.outcome for row in by_holder[holders[-1]]} == {"unknown"}
    [charged] = await sql(db, "select sum(spent) as spent from nexus.charged where scope = 'agent:a'")
    real = sum(1 for row in rows if row.outcome == "success")
    assert charged.spent == real * Decimal("0.25") + (len(rows) - real) * Decimal("0.5")
    differing = await sql(
        db,
        """select j.request_id from pgnexus.job_results j cross join lateral nexus.sum_of_calls(j.request_id) s
           where (coalesce(j.cost, 0), j.attempts) is distinct from (coalesce(s.cost, 0), s.calls)""",
    )
    assert differing == []
    await crowd.close()


async def _held(db: Database, holders: list[Any]) -> dict[Any, list[Any]]:
    """Requests that the holders have in flight, one call each."""
    claims: dict[Any, list[Any]] = {}
    for holder in holders:
        for _ in range(REQUESTS // HOLDERS):
            await request(db)
        claims[holder] = await sql(db, "select * from nexus.take_requests(%s, 500, 500)", holder)
        for number, claim in enumerate(claims[holder]):
            await reserve(db, holder, number, noted(claim, charges=[CHARGE]))
    return claims


def _ended(claim: Any) -> dict[str, Any]:
    return item(claim, "success", call(cost="0.25", charges=[ACTUAL]))


def _batches(luck: random.Random, claims: list[Any]) -> list[list[dict[str, Any]]]:
    luck.shuffle(claims)
    ended = [_ended(claim) for claim in claims]
    return [ended[start : start + 5] for start in range(0, len(ended), 5)]


async def _settle(db: Database, worker_id: Any, items: list[dict[str, Any]]) -> None:
    """As the worker does: in the order of the requests."""
    ordered = [json.dumps(one) for one in sorted(items, key=lambda one: one["run_id"])]
    await sql(db, "select nexus.settle(%s, %s::text[]::jsonb[])", worker_id, ordered)


async def _finish(db: Database, worker_id: Any) -> None:
    """Serve what is left, store all results, and correct those that were too early."""
    while taken := await sql(db, "select * from nexus.take_requests(%s, 500, 500)", worker_id):
        await _settle(db, worker_id, [_ended(SimpleNamespace(**claim._asdict())) for claim in taken])
    await sql(db, "select * from nexus.bury()")
    await sql(db, "select * from pgnexus.take_results('ai_results', 1000)")
    await sql(db, "select nexus.amend_results(1000)")
    assert await sql(db, "select 1 as one from nexus.late_calls") == []
    assert await sql(db, "select 1 as one from nexus.reservations") == []
