"""Never lost, never doubled: 200 requests in flight while something is killed, frozen or taken away.

Each test counts by ledger: the ids that were accepted, the rows of job_results, what lies on the queues, and
the calls that the provider saw.
"""

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

REQUESTS = 200
FAST = {
    "PGNEXUS_POLL_INTERVAL": "1",
    "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
    "PGNEXUS_WORKER_LEASE": "2",
    "PGNEXUS_DEFAULT_PROVIDER": "openai",
    "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
}


@pytest.fixture
def nexus_env(llmock: Any) -> dict[str, str]:
    """The environment of an `up` whose provider takes a second for each answer."""
    llmock.delay(1.0, times=None)
    return FAST | {"PGNEXUS_PROVIDERS__OPENAI__BASE_URL": llmock.base_url("openai")}


async def enqueue(service: LLMService) -> list[RequestHandle]:
    return await service.enqueue_many(
        [{"complexity": "simple", "messages": f"question {number}"} for number in range(REQUESTS)]
    )


async def in_flight(db: Database) -> bool:
    """Whether every request is held by a worker now."""
    [row] = await sql(db, "select count(*) as held from pgflow.step_tasks where status = 'started'")
    return bool(row.held == REQUESTS)


async def reconcile(db: Database, handles: list[RequestHandle]) -> None:
    """Every accepted request has one success; nothing is left anywhere."""
    results = await asyncio.gather(*(handle.result(timeout=60) for handle in handles))
    accepted = {handle.request_id for handle in handles}
    assert {result.request_id for result in results} == accepted
    rows = await sql(db, "select request_id, status from pgnexus.job_results")
    assert Counter(row.status for row in rows) == {"success": REQUESTS}
    assert {row.request_id for row in rows} == accepted
    assert await until(lambda: _settled(db))


async def _settled(db: Database) -> bool:
    runs = await sql(db, "select status, count(*) as runs from pgflow.runs group by status")
    queues = [await messages(db, queue) for queue in QUEUES]
    return [(row.status, row.runs) for row in runs] == [("completed", REQUESTS)] and not any(queues)


def questions(llmock: Any) -> Counter[str]:
    """How often the provider was asked each question."""
    return Counter(record.body["messages"][0]["content"] for record in llmock.requests)


async def test_kill_9_of_up(database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]) -> None:
    async with running(database_url, nexus=False) as service:
        async with up(database_url, "--only", "nexus", **nexus_env) as first:
            handles = await enqueue(service)
            await until(lambda: in_flight(db))
            await first.kill()
        async with up(database_url, "--only", "nexus", **nexus_env):
            await reconcile(db, handles)
    asked = questions(llmock)
    assert len(asked) == REQUESTS
    assert max(asked.values()) <= 2  # the second time only because the worker died


async def test_kill_9_of_the_poller(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    async with (
        up(database_url, "--only", "nexus", **nexus_env),
        running(database_url, nexus=False) as service,
    ):
        await service._poller.stop()  # type: ignore[union-attr]
        async with up(database_url, "--only", "poller", **nexus_env) as first:
            handles = await enqueue(service)
            await until(lambda: in_flight(db))
            await first.kill()
        await until(lambda: _waiting(db, "ai_results"))
        async with up(database_url, "--only", "poller", **nexus_env):
            await reconcile(db, handles)
    assert set(questions(llmock).values()) == {1}


async def _waiting(db: Database, queue: str) -> bool:
    return len(await messages(db, queue)) == REQUESTS


async def test_a_frozen_worker_loses_its_work_and_cannot_finish_it(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    async with (
        running(database_url, nexus=False) as service,
        up(database_url, "--only", "nexus", **nexus_env) as frozen,
    ):
        handles = await enqueue(service)
        await until(lambda: in_flight(db))
        frozen.freeze()
        async with up(database_url, "--only", "nexus", **nexus_env):
            await until(lambda: _all_ended(db), within=60)
            frozen.thaw()
            await until(lambda: _revived(db))
            await reconcile(db, handles)
    assert set(questions(llmock).values()) <= {1, 2}


async def _all_ended(db: Database) -> bool:
    [row] = await sql(db, "select count(*) as ended from pgnexus.job_results where finished_at is not null")
    return bool(row.ended == REQUESTS)


async def _revived(db: Database) -> bool:
    rows = await sql(db, "select 1 from pgflow.workers where stopped_at is null")
    return len(rows) == 2


async def test_terminate_drains(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    async with running(database_url, nexus=False) as service:
        async with up(database_url, "--only", "nexus", **nexus_env) as first:
            handles = await enqueue(service)
            await until(lambda: in_flight(db))
            assert await first.terminate() == 0
        await reconcile(db, handles)  # nobody else was there to finish them
    assert set(questions(llmock).values()) == {1}


async def test_terminate_gives_back_what_it_cannot_finish(
    database_url: str, db: Database, llmock: Any, nexus_env: dict[str, str]
) -> None:
    impatient = nexus_env | {"PGNEXUS_DRAIN_TIMEOUT": "0"}
    async with running(database_url, nexus=False) as service:
        async with up(database_url, "--only", "nexus", **impatient) as first:
            handles = await enqueue(service)
            await until(lambda: in_flight(db))
            assert await first.terminate() == 0
        tasks = await sql(db, "select distinct status, attempts_count from pgflow.step_tasks")
        assert [(row.status, row.attempts_count) for row in tasks] == [("queued", 0)]
        async with up(database_url, "--only", "nexus", **nexus_env):
            await reconcile(db, handles)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped fast"])
async def test_the_database_goes_and_comes_back(
    own_server: EmbeddedServer, llmock: Any, nexus_env: dict[str, str], how: signal.Signals
) -> None:
    url = own_server.url
    await schema.migrate(url)
    patient = nexus_env | {"PGNEXUS_WORKER_LEASE": "12"}
    async with opened(url) as db, running(url, nexus=False) as service, up(url, "--only", "nexus", **patient):
        handles = await enqueue(service)
        await until(lambda: in_flight(db))
        await restart(own_server, how)
        await reconcile(db, handles)
    # the worker lived on and kept its answers until the database could take them
    assert set(questions(llmock).values()) == {1}
