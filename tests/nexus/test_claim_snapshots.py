"""A request that comes back to its queue while a worker is looking there is taken, or stays: never popped in vain."""

from __future__ import annotations

import asyncio

from tests.nexus.books import item, request, settle, take, worker
from tests.system import sql, until


async def test_a_message_that_comes_while_the_claim_begins_is_not_lost(db):
    one, two = await worker(db), await worker(db)
    request_id = await request(db)
    claim = await take(db, one)
    async with db.connection() as back, back.transaction():
        await back.execute("lock table pgmq.q_llm_request_workflow in access exclusive mode")
        claiming = asyncio.create_task(
            sql(db, "select run_id from pgflow.claim_chains('llm_request_workflow', %s, 10)", two)
        )
        await until(lambda: _waits(db))  # its statement has begun
        released = (claim.run_id, claim.step_slug, claim.attempt)
        await back.execute(
            """select pgflow.return_chains('llm_request_workflow', %s, array[%s], array[%s], array[%s], array[0],
                                           array[null]::text[], false)""",
            [one, *released],
        )
    claimed = [row.run_id for row in await claiming]
    left = await sql(db, "select msg_id from pgmq.q_llm_request_workflow")
    assert (claimed, len(left)) in (([request_id], 0), ([], 1))
    if not claimed:
        claim = await take(db, two)
    else:
        [claim] = await sql(
            db,
            "select run_id, step_slug, attempts_count as attempt from pgflow.step_tasks where run_id = %s",
            request_id,
        )
    assert await settle(db, two, item(claim, "success")) == [request_id]


async def _waits(db):
    return await sql(
        db, "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
