"""Ending a scheduled request while the sweep sends it: they lock in opposite orders, so neither may wait."""

from __future__ import annotations

import pytest

from pgnexus.db.database import Database
from tests.system import running, sql


@pytest.mark.parametrize(
    "ends_it",
    ["pgnexus.cancel(array[%s]::uuid[])", "pgnexus.time_out_overdue(10, true) where %s is not null"],
)
async def test_a_request_that_is_being_sent_can_be_ended(
    database_url: str, db: Database, ends_it: str
) -> None:
    async with running(database_url, nexus=False) as service:
        handle = await service.enqueue("simple", "Hello", delay=3600)
    await sql(db, "update pgnexus.job_results set deadline = now() - interval '1 minute'")
    async with db.connection() as sweeper, sweeper.transaction():
        await sweeper.execute("delete from pgnexus.scheduled_requests")  # as send_due begins
        await sql(db, f"select from {ends_it}", handle.request_id)
        await sweeper.execute("update pgnexus.job_results set status = 'enqueued' where status = 'scheduled'")
    [row] = await sql(db, "select status from pgnexus.job_results")
    assert row.status in ("cancelled", "timeout")
    assert await sql(db, "select 1 from pgnexus.scheduled_requests") == []
