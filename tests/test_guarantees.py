"""What docs/guarantees.md promises and no other test shows; above all that failures are results."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgnexus.db.database import Database
from pgnexus.errors import InvalidSettings
from tests.system import archived, fast, messages, put, running, sql, started, until

QUEUE = "answers"
LEASES = 5  # workers a request may lose before it fails

# A worker that dies of every request: its handler ends the process, with no time to say goodbye.
DEADLY = """
import asyncio, os, sys
from pgnexus.app import App
from pgnexus.nexus.router import LLMRouter
from pgnexus.settings import Settings

LLMRouter.run = lambda *_, **__: os._exit(9)

async def main():
    await App(Settings.load(database_url=sys.argv[1]), caller=False, nexus=True).start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
async def request_id(db: Database) -> AsyncIterator[UUID]:
    """The id of the test's one request; afterwards its run has failed, and there is one answer, sent with that."""
    await sql(db, "select nexus_api.create_queue(%s)", QUEUE)
    name = uuid4()
    yield name
    [run] = await sql(db, "select run_id, status, xmin from pgflow.runs")
    assert (run.run_id, run.status) == (name, "failed")
    [answer] = await sql(db, f"select message ->> 'request_id' as name, xmin from pgmq.q_{QUEUE}")
    assert answer.name == str(name)
    assert answer.xmin == run.xmin  # written by one transaction
    tasks = await sql(db, "select distinct status from pgflow.step_tasks")
    assert [task.status for task in tasks] == ["failed"]


async def ask(db: Database, request_id: UUID, **fields: Any) -> None:
    question = [{"role": "user", "content": "Hello"}]
    request = {"request_id": str(request_id), "messages": question, "reply_to": QUEUE} | fields
    await put(db, "ai_requests", json.dumps(request))


async def answer(db: Database) -> Any:
    [message] = await until(lambda: messages(db, QUEUE))
    return message


async def take(db: Database, worker: UUID) -> list[Any]:
    await sql(db, "select pgflow.heartbeat(%s, 'llm_request_workflow', 'a test', '0 s')", worker)
    return await sql(db, "select run_id, attempt from nexus.take_requests(%s, 10, 10)", worker)


async def test_an_error(database_url: str, db: Database, llmock: Any, request_id: UUID) -> None:
    llmock.fail(400, times=None)
    async with started(database_url, llmock.base_url("openai"), caller=False):
        await ask(db, request_id)
        failure = await answer(db)
    assert (failure["status"], failure["error"]["type"]) == ("failed", "bad_request")


async def test_the_last_lease(db: Database, request_id: UUID) -> None:
    await ask(db, request_id)
    for attempt in range(1, LEASES + 1):
        assert [(row.run_id, row.attempt) for row in await take(db, uuid4())] == [(request_id, attempt)]
        assert await messages(db, QUEUE) == []
        await sql(db, "select pgflow.recover_tasks()")
    failure = await answer(db)
    assert (failure["status"], failure["error"]["type"]) == ("failed", "worker_lost")


async def test_a_stall(database_url: str, db: Database, llmock: Any, request_id: UUID) -> None:
    llmock.delay(5, times=None)
    async with started(database_url, llmock.base_url("openai"), caller=False):
        [row] = await sql(db, "select now() + interval '1 s' as deadline")
        await ask(db, request_id, deadline=row.deadline.isoformat())
        failure = await answer(db)
    assert (failure["status"], failure["error"]["type"]) == ("timeout", "timeout")


async def test_a_cancel(database_url: str, db: Database, llmock: Any, request_id: UUID) -> None:
    llmock.delay(5, times=None)
    async with started(database_url, llmock.base_url("openai"), caller=False):
        await ask(db, request_id)
        await until(lambda: sql(db, "select 1 from pgflow.runs"))
        await sql(db, "select nexus_api.cancel(%s)", [request_id])
        failure = await answer(db)
    assert (failure["status"], failure["error"]["type"]) == ("cancelled", "cancelled")


async def test_an_operator(db: Database, request_id: UUID) -> None:
    await ask(db, request_id)
    await take(db, uuid4())
    await sql(
        db, "update pgflow.step_tasks set status = 'failed', failed_at = now(), error_message = 'by hand'"
    )
    await sql(db, "update pgflow.runs set status = 'failed', failed_at = now()")
    failure = await answer(db)
    assert (failure["status"], failure["error"]["message"]) == ("failed", "by hand")


@pytest.mark.parametrize("fields", [{"messages": "Hello"}, {"max_tokens": "many"}, {"v": 2}], ids=str)
async def test_a_type_violation(
    database_url: str, db: Database, request_id: UUID, fields: dict[str, Any]
) -> None:
    async with started(database_url, caller=False):
        await ask(db, request_id, **fields)
        failure = await answer(db)
    assert (failure["status"], failure["error"]["type"]) == ("failed", "invalid_request")
    assert next(iter(fields)) in failure["error"]["message"]


async def test_a_handler_that_kills_its_process_every_time(
    database_url: str, db: Database, request_id: UUID
) -> None:
    await ask(db, request_id)
    for attempt in range(1, LEASES + 1):
        worker = await asyncio.create_subprocess_exec(sys.executable, "-c", DEADLY, database_url)
        assert await worker.wait() == 9
        [task] = await sql(db, "select status, attempts_count from pgflow.step_tasks")
        assert (task.status, task.attempts_count) == ("started", attempt)
        await sql(db, "update pgflow.workers set lease = '0 s'")  # as if it had passed
        await sql(db, "select pgflow.recover_tasks()")
    failure = await answer(db)
    assert (failure["status"], failure["error"]["type"]) == ("failed", "worker_lost")


async def test_what_is_nobodys_request_is_put_aside(database_url: str, db: Database, llmock: Any) -> None:
    """It blocks nothing: what came after it is answered."""
    await sql(db, "select nexus_api.create_queue(%s)", QUEUE)
    async with started(database_url, llmock.base_url("openai"), caller=False):
        await put(db, "ai_requests", '{"messages": "whose?"}', '"rubbish"')
        await ask(db, uuid4())
        assert (await answer(db))["status"] == "success"
    aside = await archived(db, "ai_requests")
    assert [message for message, _ in aside] == [{"messages": "whose?"}, "rubbish"]
    assert {reason for _, reason in aside} == {"no request: needs request_id, a UUID"}


async def test_messages_that_are_delivered_twice(database_url: str, db: Database, llmock: Any) -> None:
    """A request and a result, each put on its queue two times: one run, one call, one outcome."""
    async with running(database_url, llmock.base_url("openai"), nexus=False) as service:
        handle = await service.enqueue("simple", "Hello")
        await sql(
            db, "insert into pgmq.q_ai_requests (vt, message) select vt, message from pgmq.q_ai_requests"
        )
    async with started(database_url, llmock.base_url("openai"), caller=False):
        await until(lambda: messages(db, "ai_results"))
        await until(lambda: drained(db, "ai_requests"))
    await sql(db, "insert into pgmq.q_ai_results (vt, message) select vt, message from pgmq.q_ai_results")
    async with running(database_url, nexus=False) as service:
        result = await service.handle(handle.request_id).result()
        await until(lambda: drained(db, "ai_results"))
        assert await service.search() == [await service.job_result(handle.request_id)]
    assert (result.status, result.attempts, len(llmock.requests)) == ("success", 1, 1)


async def drained(db: Database, queue: str) -> bool:
    return not await messages(db, queue)


def test_polling_is_only_the_safety_net() -> None:
    with pytest.raises(InvalidSettings, match="poll_interval"):
        fast("postgresql://nowhere/none", poll_interval=0.9)
