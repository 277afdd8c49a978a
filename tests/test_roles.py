"""The two roles: with them the whole way works, and neither touches what is the other's."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from uuid import uuid4

import psycopg
import pytest
from system import answered, archived, messages, put, sql, started, until

from pgnexus.caller.results import JobResult
from pgnexus.db.database import Database
from pgnexus.errors import RequestFailed, RequestTimeout


@pytest.fixture
async def sides(caller_url, nexus_url, llmock):
    """(LLMService under the caller's role, NexusService under the nexus role)."""
    async with AsyncExitStack() as stack:
        nexus = await stack.enter_async_context(started(nexus_url, llmock.base_url(), caller=False))
        caller = await stack.enter_async_context(started(caller_url, nexus=False))
        yield caller.service, nexus.nexus


async def test_the_whole_way(sides, llmock, db):
    service, _ = sides
    llmock.reply("Paris.")
    result = await service.call("simple", "What is the capital of France?")
    assert (result.text, result.cost > 0) == ("Paris.", True)
    handles = await service.enqueue_many([{"messages": f"{i}"} for i in range(50)])
    assert all([(await handle.result(timeout=20)).ok for handle in handles])
    later = await service.enqueue("simple", "Hello", delay=0.1, idempotency_key="k", priority="batch")
    assert (await later.result(timeout=20)).ok
    assert (await service.queue_metrics()).instances == 1
    assert any(model.usable for model in await service.get_available_models())
    assert len(await sql(db, "select 1 from nexus.attempts")) == 52


async def test_failures_timeouts_cancels_and_retries(sides, llmock, db):
    service, _ = sides
    llmock.fail(400)
    with pytest.raises(RequestFailed) as raised:
        await service.call("simple", "Hello")
    assert (await (await service.retry(raised.value.request_id)).result(timeout=20)).ok
    llmock.fail(500)
    assert (await service.call("simple", "Hello")).attempts == 2
    llmock.delay(30, times=2)
    with pytest.raises(RequestTimeout):
        await service.call("simple", "Hello", timeout=0.5)
    handle = await service.enqueue("simple", "Hello")
    await until(lambda: flying(service))
    assert await handle.cancel()
    assert await handle.status() == "cancelled"


async def test_rubbish_and_foreign_queues(sides, caller_url, db):
    await put(db, "ai_requests", "{}", '{"request_id": 5}')
    await put(db, "ai_results", "[]")
    await until(lambda: archived(db, "ai_results"))
    assert await until(lambda: archived(db, "ai_requests"))
    caller = await Database.open(caller_url)
    await sql(caller, "select nexus_api.create_queue('theirs')")
    question = f'{{"request_id": "{uuid4()}", "reply_to": "theirs", "messages": [{{"role": "user", "content": "Hi"}}]}}'
    await put(caller, "ai_requests", question)
    [answer] = await answered(caller, "theirs")
    assert answer["status"] == "success"
    await caller.close()


async def test_a_queue_that_the_nexus_role_may_not_write_to(sides, db):
    await sql(db, "select pgmq.create('secret')")
    name = uuid4()
    question = (
        f'{{"request_id": "{name}", "reply_to": "secret", "messages": [{{"role": "user", "content": "Hi"}}]}}'
    )
    await put(db, "ai_requests", question)
    stored = await until(lambda: JobResult.get(db, name))
    assert stored.status == "success"
    assert await messages(db, "secret") == []


async def test_work_of_a_lost_worker_is_given_back(sides, nexus_url, db):
    service, nexus = sides
    await sql(
        db,
        "insert into pgflow.workers values (%s, 'llm_request_workflow', 'lost', now(), null, now())",
        lost := uuid4(),
    )
    await nexus.consumer.stop(0)
    await nexus._recovery.stop()  # which would be as quick as the stranger
    handle = await service.enqueue("simple", "Hello")
    stranger = await Database.open(nexus_url)
    await sql(stranger, "select * from nexus.take_requests(%s, 10, 10)", lost)
    assert await sql(stranger, "select run_id from pgflow.recover_tasks()") == [(handle.request_id,)]
    await stranger.close()


REFUSED = {
    "caller": [
        "select * from nexus.attempts",
        "select * from nexus.metrics",
        "select * from nexus.models",
        "insert into nexus.cancellations values (gen_random_uuid())",
        "select nexus.try_uuid('x')",
        "select * from nexus.take_requests(gen_random_uuid(), 1, 1)",
        "select message from pgmq.q_ai_requests",
        "select message from pgmq.q_ai_requests_batch",
        "select pgmq.pop('ai_requests')",
        "delete from pgmq.q_ai_requests_interactive",
        "select * from pgmq.a_ai_requests",
        "select pgmq.drop_queue('ai_results')",
        "insert into pgnexus.schema_migrations values (99, 'x', 'x', now(), 'x')",
        "create table pgnexus.mine (n int)",
        "select pg_read_file('/etc/passwd')",
    ],
    "nexus": [
        "select * from pgnexus.job_results",
        "select * from pgnexus.idempotency_keys",
        "insert into pgnexus.job_results (request_id, status) values (gen_random_uuid(), 'enqueued')",
        "select * from pgnexus.enqueue('{}')",
        "select pgnexus.cancel('{}')",
        "select message from pgmq.q_ai_results",
        "select pgmq.pop('ai_results')",
        "delete from pgmq.q_ai_results",
        "select * from pgmq.a_ai_results",
        "select pgmq.drop_queue('ai_requests')",
        "create table nexus.mine (n int)",
    ],
}


@pytest.mark.parametrize(
    ("role", "statement"), [(role, text) for role, texts in REFUSED.items() for text in texts]
)
async def test_what_each_is_refused(role, statement, caller_url, nexus_url):
    url = {"caller": caller_url, "nexus": nexus_url}[role]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement)


async def test_a_stranger_is_refused_everything(database_url, db):
    if not await sql(db, "select 1 from pg_roles where rolname = 'pgnexus_stranger'"):
        with suppress(
            psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation
        ):  # another test's, just now
            await sql(db, "create role pgnexus_stranger")
    statements = [text for texts in REFUSED.values() for text in texts]
    statements += [
        "select * from nexus_api.queue_metrics()",
        "select nexus_api.create_queue('x')",
        "select * from pgflow.runs",
    ]
    url = f"{database_url}&options=-crole%3Dpgnexus_stranger"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement)


async def flying(service) -> int:
    await asyncio.sleep(0)
    return (await service.queue_metrics()).in_flight
