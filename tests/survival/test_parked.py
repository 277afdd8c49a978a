"""Never lost, never doubled: requests in line for a limit, while workers and the database are killed."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

import pytest

from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.service import LLMService
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from tests.survival.processes import opened, restart, up
from tests.system import QUEUES, messages, running, sql, until

REQUESTS = 150


@pytest.fixture
def nexus_env(llmock: Any) -> dict[str, str]:
    """The environment of an `up` that may make five calls of a tenth of a second at once."""
    llmock.delay(0.1, times=None)
    return {
        "PGNEXUS_POLL_INTERVAL": "1",
        "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
        "PGNEXUS_WORKER_LEASE": "2",
        "PGNEXUS_DEFAULT_PROVIDER": "openai",
        "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
        "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": llmock.base_url("openai"),
        "PGNEXUS_LIMITS": '{"openai": {"concurrent_calls": 5}}',
    }


async def enqueue(service: LLMService) -> list[RequestHandle]:
    return await service.enqueue_many(
        [{"messages": f"question {number}", "agent_id": f"agent {number % 3}"} for number in range(REQUESTS)]
    )


async def parked(db: Database) -> bool:
    """Whether a good part of the requests is in line."""
    [row] = await sql(db, "select count(*) from nexus.parked")
    return bool(row.count >= REQUESTS / 5)


async def reconcile(db: Database, handles: list[RequestHandle]) -> None:
    """Every accepted request has one success; nothing is left anywhere."""
    results = await asyncio.gather(*(handle.result(timeout=60) for handle in handles))
    assert Counter(result.status for result in results) == {"success": REQUESTS}
    rows = await sql(db, "select request_id, status from pgnexus.job_results")
    assert Counter(row.status for row in rows) == {"success": REQUESTS}
    assert {row.request_id for row in rows} == {handle.request_id for handle in handles}
    assert await until(lambda: _nothing_is_left(db))


async def _nothing_is_left(db: Database) -> bool:
    runs = await sql(db, "select status, count(*) as runs from pgflow.runs group by status")
    queues = [await messages(db, queue) for queue in QUEUES]
    lines = await sql(db, "select * from nexus.parked")
    return (
        [(row.status, row.runs) for row in runs] == [("completed", REQUESTS)]
        and not any(queues)
        and not lines
    )


def questions(llmock: Any) -> Counter[str]:
    """How often the provider was asked each question."""
    return Counter(record.body["messages"][0]["content"] for record in llmock.requests)


async def test_kill_9_of_a_worker_that_parked(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    async with running(database_url, nexus=False) as service:
        async with up(database_url, "--only", "nexus", **nexus_env) as first:
            handles = await enqueue(service)
            await until(lambda: parked(db))
            await first.kill()
            held = await sql(
                db,
                """select r.input #>> '{messages,0,content}' as question
                   from pgflow.step_tasks t join pgflow.runs r using (run_id) where t.status = 'started'""",
            )
        async with up(database_url, "--only", "nexus", **nexus_env):
            await reconcile(db, handles)
    asked = questions(llmock)
    assert len(asked) == REQUESTS
    twice = {question for question, times in asked.items() if times > 1}
    assert twice <= {row.question for row in held}  # what the dead worker had under way
    assert max(asked.values()) <= 2


@pytest.mark.soak
async def test_the_database_is_killed_while_requests_are_in_line(
    own_server: EmbeddedServer, llmock: Any, nexus_env: dict[str, str]
) -> None:
    await schema.migrate(own_server.url)
    async with (
        opened(own_server.url) as db,
        running(own_server.url, nexus=False) as service,
        up(own_server.url, "--only", "nexus", **nexus_env),
        up(own_server.url, "--only", "nexus", **nexus_env),
    ):
        handles = await enqueue(service)
        await until(lambda: parked(db))
        await restart(own_server, signal.SIGQUIT)
        await reconcile(db, handles)
    assert len(questions(llmock)) == REQUESTS
