"""Wall clocks that jump by days while requests are served: nothing waits, ends or is given up by them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chaos.clock import MISSING, SEEN_WITHIN, Clock, library
from pgnexus.db.database import Database
from tests.survival.processes import up
from tests.system import running, sql

pytestmark = pytest.mark.skipif(library() is None, reason=MISSING)

DAY = 86400.0


async def test_a_worker_whose_clock_jumps_goes_on(
    database_url: str, db: Database, llmock: Any, tmp_path: Path
) -> None:
    clock = Clock(tmp_path / "clock")
    environ = clock.environment() | {
        "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": llmock.base_url("openai"),
        "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
        "PGNEXUS_DEFAULT_PROVIDER": "openai",
        "PGNEXUS_POLL_INTERVAL": "1",
        "PGNEXUS_LIMITS": '{"provider:openai": {"requests_per_minute": 600}}',
    }
    async with (
        running(database_url, nexus=False) as service,
        up(database_url, "--only", "nexus", **environ) as served,
    ):
        for jump in (DAY, -2 * DAY):
            clock.jump(jump)
            llmock.rate_limit(retry_after=1)
            llmock.delay(SEEN_WITHIN)
            assert (await service.call("simple", "under way when it jumps", timeout=60)).ok
            later = await service.enqueue("simple", "later", delay=0.5, timeout=60)
            asked = (service.call("simple", f"{number}", timeout=60) for number in range(10))
            assert all(result.ok for result in await asyncio.gather(*asked))
            assert (await later.result()).ok
    assert "had been given up" not in "".join(served.lines)
    assert [row.status for row in await sql(db, "select distinct status from pgnexus.job_results")] == [
        "success"
    ]
