"""QueueConsumer: batches, back-pressure, cancels that race a claim, and messages that no batch survives."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest
from system import answered, archived, messages, put, running, sql, started, until

from pgnexus.errors import ModelUnavailable, RequestFailed

POISON = """
create function poison() returns trigger language plpgsql as $$
begin
  if new.input ->> 'poison' is not null then raise exception 'it tastes bad'; end if;
  return new;
end $$;
create trigger poison before insert on {table} for each row execute function poison()
"""


def request(**fields) -> str:
    question = [{"role": "user", "content": "Hello"}]
    return json.dumps({"request_id": str(uuid4()), "messages": question, "reply_to": "answers"} | fields)


@pytest.fixture
async def answers(db):
    await sql(db, "select nexus_api.create_queue('answers')")


async def test_a_message_that_no_batch_survives_is_archived_alone(database_url, llmock, db, answers):
    await sql(db, POISON.format(table="pgflow.runs"))
    lanes = ["ai_requests_interactive", "ai_requests", "ai_requests", "ai_requests_batch"]
    bad = [request(poison=True) for _ in lanes]
    for lane, text in zip(lanes, bad, strict=True):
        await put(db, lane, *(request() for _ in range(7)), text, *(request() for _ in range(7)))
    async with started(database_url, llmock.base_url()), started(database_url, llmock.base_url()):
        found = await answered(db, "answers", 60)
    failed = {answer["request_id"]: answer["error"] for answer in found if answer["status"] != "success"}
    assert failed.keys() == {json.loads(text)["request_id"] for text in bad}
    assert {error["type"] for error in failed.values()} == {"invalid_request"}
    assert len(found) == 60
    for lane in set(lanes):
        kept = await archived(db, lane)
        assert len(kept) == lanes.count(lane)
        assert {reason for _, reason in kept} == {"it tastes bad"}


async def test_a_result_that_no_batch_survives_is_archived_alone(database_url, db):
    await sql(
        db,
        POISON.replace("new.input ->> 'poison'", "new.output ->> 'poison'").format(
            table="pgnexus.job_results"
        ),
    )
    texts = [
        json.dumps({"request_id": str(uuid4()), "status": "success", "response": f"{i}"}) for i in range(20)
    ]
    texts.insert(7, json.dumps({"request_id": str(uuid4()), "status": "success", "poison": True}))
    async with running(database_url, nexus=False) as one, running(database_url, nexus=False):
        await put(db, "ai_results", *texts)

        async def stored():
            return len(await one.search()) == 20 and await archived(db, "ai_results")

        [(message, reason)] = await until(stored)
    assert (message["poison"], reason) == (True, "it tastes bad")


async def test_requests_claimed_in_a_call_that_broke_off_are_given_back(
    database_url, db, llmock, answers, caplog
):
    async with started(database_url, llmock.base_url(), caller=False) as app:
        consumer = app.nexus.consumer
        async with db.connection() as connection, connection.transaction():
            await connection.execute("select pgmq.send('ai_requests', %s::jsonb)", [request()])
            # what a call whose answer is lost leaves behind
            claim = "select * from nexus.take_requests(%s, 10, 10)"
            await connection.execute(claim, [app.nexus.registry.instance_id()])
        assert [row.status for row in await sql(db, "select status from pgflow.runs")] == ["started"]
        assert consumer.in_flight == 0
        consumer.strays.doubt.rise()
        await sql(db, "select pg_notify('pgnexus_requests', '')")
        [answer] = await answered(db, "answers")
    assert (answer["status"], answer["attempts"]) == ("success", 1)
    assert "1 requests had been claimed in calls that broke off" in caplog.text


async def test_claims_that_a_standby_still_knows_are_given_back_when_it_takes_over(
    database_url, db, llmock, answers
):
    async with started(database_url, llmock.base_url(), caller=False, poll_interval=60) as app:
        async with db.connection() as connection, connection.transaction():
            await connection.execute("select pgmq.send('ai_requests', %s::jsonb)", [request()])
            claim = "select * from nexus.take_requests(%s, 10, 10)"  # settled on a primary that is lost
            await connection.execute(claim, [app.nexus.registry.instance_id()])
        cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgnexus listener'"
        await sql(db, cut)
        [answer] = await answered(db, "answers")
    assert (answer["status"], answer["attempts"]) == ("success", 1)


async def test_a_claim_that_is_given_up_before_it_began_is_given_back(
    database_url, db, llmock, answers, monkeypatch
):
    async with started(database_url, llmock.base_url(), caller=False, poll_interval=60) as app:
        consumer = app.nexus.consumer
        begin = consumer._begin

        def begin_and_give_up(claims):
            begin(claims)
            if claims:  # in the same turn of the event loop
                monkeypatch.undo()
                consumer.strays.doubt._looks.clear()  # those that the start of the listener gave reason for
                consumer.hurry()

        monkeypatch.setattr(consumer, "_begin", begin_and_give_up)
        await put(db, "ai_requests", request())
        [answer] = await answered(db, "answers")
    assert (answer["status"], answer["attempts"]) == ("success", 1)


async def test_a_call_that_claims_and_fails_is_doubted(database_url, db, llmock, answers, caplog):
    async with started(database_url, llmock.base_url(), caller=False, poll_interval=60) as app:
        async with db.connection() as connection, connection.transaction():
            await connection.execute("select pgmq.send('ai_requests', %s::jsonb)", [request()])
            claim = "select * from nexus.take_requests(%s, 10, 10)"
            await connection.execute(claim, [app.nexus.registry.instance_id()])
        await sql(db, "alter function nexus.take_requests(uuid, int, int) rename to away")
        await sql(db, "select pg_notify('pgnexus_requests', '')")
        await until(lambda: _failed(caplog))
        await sql(db, "alter function nexus.away(uuid, int, int) rename to take_requests")
        [answer] = await answered(db, "answers")
    assert answer["status"] == "success"


async def _failed(caplog):
    return "queue consumer: failed" in caplog.text


@pytest.mark.parametrize("text", ['{"run_id": "x", "step_slug": "validate"}', "[]", "5", "{}"])
async def test_rubbish_on_the_engines_queue_costs_no_request(database_url, llmock, db, answers, text):
    await sql(db, "select pgmq.send('llm_request_workflow', %s::jsonb)", text)
    async with started(database_url, llmock.base_url()):
        await put(db, "ai_requests", *(request() for _ in range(5)))
        found = await answered(db, "answers", 5)
    assert {answer["status"] for answer in found} == {"success"}


async def test_a_cancel_that_meets_a_claim_on_its_way_is_an_end(database_url, llmock, db, answers):
    async with started(database_url, llmock.base_url()):
        text = request()
        # The consumer hears of the cancel, but the claim's transaction did not see it.
        await sql(db, "select pg_notify('pgnexus_cancel', %s)", json.loads(text)["request_id"])
        await put(db, "ai_requests", text)
        [answer] = await answered(db, "answers")
        assert answer["status"] == answer["error"]["type"] == "cancelled"
    assert [row.status for row in await sql(db, "select status from pgflow.runs")] == ["failed"]
    assert not llmock.requests


async def test_never_more_is_claimed_than_can_run(database_url, llmock, db, answers):
    llmock.delay(0.2, times=None)
    most = 0
    async with started(database_url, llmock.base_url(), concurrency=3) as app:
        await put(db, "ai_requests", *(request() for _ in range(9)))
        while len(await messages(db, "answers")) < 9:
            [row] = await sql(db, "select count(*) from pgflow.step_tasks where status = 'started'")
            most = max(most, row.count, app.nexus.consumer.in_flight)
    assert 0 < most <= 3
    assert len(llmock.requests) == 9


async def test_a_full_batch_lane_leaves_a_slot_for_an_interactive_request(database_url, llmock, db, answers):
    llmock.delay(0.5, times=None)
    async with started(database_url, llmock.base_url(), concurrency=1) as app:
        await put(db, "ai_requests_batch", *(request() for _ in range(5)))
        await until(lambda: calling(app))
        await put(db, "ai_requests_interactive", text := request())

        async def both() -> bool:
            return app.nexus.consumer.in_flight == 2

        await until(both)
        early = [answer["request_id"] for answer in await answered(db, "answers", 2)][:3]
        assert json.loads(text)["request_id"] in early  # with four of the batch still to come


async def test_a_drain_gives_back_what_does_not_finish(database_url, llmock, db, answers):
    llmock.delay(30, times=None)
    async with started(database_url, llmock.base_url(), drain_timeout=0.0) as app:
        await put(db, "ai_requests", text := request())
        await until(lambda: calling(app))
    [task] = await sql(db, "select status, attempts_count from pgflow.step_tasks")
    assert (task.status, task.attempts_count) == ("queued", 0)
    llmock.reset()
    async with started(database_url, llmock.base_url()):
        [answer] = await answered(db, "answers")
    assert (answer["request_id"], answer["status"]) == (json.loads(text)["request_id"], "success")


async def test_a_run_that_an_operator_fails_while_its_call_runs_has_one_result(database_url, llmock, db):
    llmock.delay(30)
    async with running(database_url, llmock.base_url()) as service:
        handle = await service.enqueue("simple", "Hello")

        async def called():
            return (await service.queue_metrics()).in_flight

        await until(called)
        await sql(
            db,
            "update pgflow.runs set status = 'failed', failed_at = now() where run_id = %s",
            handle.request_id,
        )
        with pytest.raises(RequestFailed):
            await handle.result(timeout=10)

        async def booked():
            return await sql(db, "select outcome from nexus.attempts")

        assert await until(booked) == [("cancelled",)]  # nobody pays for more of it than was used
        assert await handle.status() == "failed"
    [run] = await sql(db, "select status from pgflow.runs")
    assert run.status == "failed"
    assert await messages(db, "ai_results") == []


async def test_metrics_are_stored_by_model_provider_complexity_and_task_type(database_url, llmock, db):
    llmock.fail(500)
    async with running(database_url, llmock.base_url()) as service:
        result = await service.call("complex", "Hello", task_type="qa", agent_id="a1")
    rows = await sql(db, "select * from nexus.metrics order by outcome")
    failed, won = rows
    for row in rows:
        assert (row.provider, row.complexity, row.task_type, row.agent_id) == (
            "openai",
            "complex",
            "qa",
            "a1",
        )
        assert (row.model, row.calls) == (result.model, 1)
    assert (failed.outcome, won.outcome, won.cost) == ("provider_unavailable", "success", result.cost)
    assert (won.prompt_tokens, won.completion_tokens) == (
        result.usage.prompt_tokens,
        result.usage.completion_tokens,
    )
    assert won.p50_ms >= 0


async def test_what_is_not_served_stays_a_failure_of_its_own(database_url, llmock):
    async with running(database_url, llmock.base_url(), default_provider=None, providers={}) as service:
        outcomes = await asyncio.gather(
            service.call("no-such-model", "Hello"),
            service.call("xai/grok-4.7", "Hello"),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [ModelUnavailable] * 2
    assert {outcome.result.error.type for outcome in outcomes} == {"model_unavailable"}


async def calling(app) -> bool:
    return app.nexus.consumer.in_flight == 1
