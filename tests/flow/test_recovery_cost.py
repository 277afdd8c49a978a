"""Looking for lost work costs the same however much was done before."""

from __future__ import annotations

import pytest
from system import sql, until

_DONE = """
with old as (
  insert into pgflow.runs (flow_slug, input, status, completed_at)
  select 'llm_request_workflow', '{}', 'completed', now() from generate_series(1, 20000) returning run_id)
insert into pgflow.step_tasks (run_id, flow_slug, step_slug, status, last_worker_id, attempts_count)
select run_id, 'llm_request_workflow', 'validate', 'started', gen_random_uuid(), 1 from old"""


@pytest.mark.parametrize("function", ["recover_tasks()", "requeue_stalled_tasks()"])
async def test_what_ended_is_walked_past_once(db, function):
    await sql(db, _DONE)
    await sql(db, "update pgflow.step_tasks set status = 'completed', completed_at = now()")

    async def pages() -> int:
        plan = f"explain (analyze, buffers, format json) select * from pgflow.{function} as found"
        [row] = await sql(db, plan)
        top = row[0][0]["Plan"]
        return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])

    async def few() -> bool:  # as soon as nobody can see the rows of before, an autovacuum's analyze included
        return await pages() < 150

    assert await pages() > 150
    await until(few)
