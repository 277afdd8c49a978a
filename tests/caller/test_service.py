"""LLMService as a caller meets it: ask, wait, come back later, cancel, look up."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from conftest import database_name
from system import LANES, messages, nothing_stored, running, sql, until

from pgnexus.caller.results import JobResult
from pgnexus.errors import (
    InvalidRequest,
    ModelUnavailable,
    QuotaExceeded,
    RateLimited,
    RequestCancelled,
    RequestFailed,
    RequestTimeout,
    ResultPending,
    UnknownRequest,
)
from pgnexus.messages import LLMResult, ResultError

PARAMETERS = {"type": "object", "properties": {"zeta": {"type": "string"}, "alpha": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": PARAMETERS}}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": PARAMETERS}}
OPTIONS = (
    "max_completion_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
)


class TestCalls:
    async def test_a_call_waits_and_returns_all_there_is_to_know(self, database_url, llmock):
        llmock.reply("Paris.")
        async with running(database_url, llmock.base_url()) as service:
            result = await service.call("simple", "What is the capital of France?", agent_id="a1")
        assert (result.text, result.status, result.ok) == ("Paris.", "success", True)
        assert result.message["content"] == "Paris."
        assert result.message["role"] == "assistant"
        assert (result.provider, result.model, result.finish_reason) == ("openai", "gpt-4o-mini", "stop")
        assert (result.agent_id, result.attempts, result.error) == ("a1", 1, None)
        assert result.usage.total_tokens == result.usage.prompt_tokens + result.usage.completion_tokens > 0
        assert result.cost > Decimal(0)
        assert result.latency_ms >= 0
        assert result.request_id.version == 7
        assert result.timestamp.tzinfo is not None

    async def test_prompt_and_system_are_messages(self, database_url, llmock):
        async with running(database_url, llmock.base_url()) as service:
            await service.call_with_prompt("simple", "One.")
            await service.call_with_system("simple", "Be brief.", "Two.")
            await service.call("simple", [{"role": "user", "content": [{"type": "text", "text": "Three."}]}])
        assert [record.body["messages"] for record in llmock.requests] == [
            [{"role": "user", "content": "One."}],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two."}],
            [{"role": "user", "content": [{"type": "text", "text": "Three."}]}],
        ]

    async def test_every_option_reaches_the_provider_and_is_absent_when_unset(self, database_url, llmock):
        async with running(database_url, llmock.base_url()) as service:
            await service.call("simple", "Plain.")
            await service.call(
                "gpt-4o-mini",
                "With everything.",
                max_tokens=7,
                temperature=0.5,
                top_p=0.9,
                stop=["\n"],
                seed=2**40,
                tools=TOOLS,
                tool_choice="auto",
                response_format=FORMAT,
                metadata={"for": "us"},
                agent_id="a1",
                task_type="parser",
                api_version="chat_completions",
            )
        plain, full = (record.body for record in llmock.requests)
        assert plain.keys() == {"model", "messages"}
        assert full.keys() == {"model", "messages", *OPTIONS}
        assert (full["model"], full["max_completion_tokens"], full["seed"]) == ("gpt-4o-mini", 7, 2**40)
        assert (full["temperature"], full["top_p"], full["stop"]) == (0.5, 0.9, ["\n"])
        assert (full["tools"], full["tool_choice"], full["response_format"]) == (TOOLS, "auto", FORMAT)

    async def test_the_order_of_a_schema_survives(self, database_url, llmock):
        async with running(database_url, llmock.base_url()) as service:
            await service.call("simple", "Hello", tools=TOOLS, response_format=FORMAT)
        body = llmock.last_request.body
        assert json.dumps(body["tools"]) == json.dumps(TOOLS)
        assert json.dumps(body["response_format"]) == json.dumps(FORMAT)

    async def test_tool_calls(self, database_url, llmock):
        llmock.call_tool("look_up", {"alpha": 1})
        async with running(database_url, llmock.base_url()) as service:
            asked = {"role": "user", "content": "Look it up."}
            result = await service.call("simple", [asked], tools=TOOLS)
            [call] = result.tool_calls
            assert (result.text, result.finish_reason) == ("", "tool_calls")
            assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (
                "look_up",
                {"alpha": 1},
            )
            again = await service.handle(result.request_id).result()
            assert again.tool_calls == result.tool_calls
            found = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
            llmock.reply("It is 42.")
            assert (
                await service.call("simple", [asked, result.message, found], tools=TOOLS)
            ).text == "It is 42."
        assert llmock.last_request.body["messages"][2] == found

    async def test_the_responses_api(self, database_url, llmock):
        llmock.reply("Paris.")
        async with running(database_url, llmock.base_url()) as service:
            assert (await service.call("simple", "Hello", api_version="responses")).text == "Paris."
        assert llmock.last_request.path == "/v1/responses"

    async def test_models_and_complexities(self, database_url, llmock):
        async with running(database_url, llmock.base_url()) as service:
            models = await service.get_available_models()
            assert ("openai", "gpt-4o", True, None) in models
            assert next(m.reason for m in models if m.provider == "xai").startswith("provider xai has no key")
            assert service.determine_complexity_for_task("architect") == "complex"
            assert service.determine_complexity_for_task("poetry") == "medium"
            await service.call("complex", "Hello", task_type="coder")
            stored = await service.search(task_type="coder")
        assert [(row.complexity, row.task_type) for row in stored] == [("complex", "coder")]


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "code", "error", "kind"),
        [
            (400, None, RequestFailed, "bad_request"),
            (401, None, ModelUnavailable, "authentication_failed"),
            (404, "model_not_found", ModelUnavailable, "model_not_found"),
            (429, None, RateLimited, "rate_limited"),
            (429, "insufficient_quota", QuotaExceeded, "quota_exceeded"),
            (503, None, ModelUnavailable, "provider_unavailable"),
        ],
    )
    async def test_each_has_its_type(self, database_url, llmock, status, code, error, kind):
        llmock.fail(status, code=code, times=None)
        async with running(database_url, llmock.base_url(), max_attempts=2) as service:
            with pytest.raises(error) as raised:
                await service.call("simple", "Hello")
            again = service.handle(raised.value.request_id)
            with pytest.raises(error):
                await again.result()
            assert await again.status() == "failed"
        assert type(raised.value) is error
        assert raised.value.result.error.type == kind
        assert raised.value.result.attempts == len(llmock.requests)

    async def test_a_model_nobody_serves(self, database_url, llmock):
        async with running(database_url, llmock.base_url(), default_provider=None, providers={}) as service:
            with pytest.raises(ModelUnavailable, match="no-such-model"):
                await service.call("no-such-model", "Hello")
        assert not llmock.requests

    async def test_what_passes_is_tried_again(self, database_url, llmock):
        llmock.fail(500, times=2)
        llmock.reply("At last.")
        async with running(database_url, llmock.base_url()) as service:
            result = await service.call("simple", "Hello")
        assert (result.text, result.attempts) == ("At last.", 3)


class TestDeadlines:
    async def test_past_it_the_result_is_timeout(self, database_url, llmock):
        llmock.delay(5)
        async with running(database_url, llmock.base_url()) as service:
            with pytest.raises(RequestTimeout) as raised:
                await service.call("simple", "Hello", timeout=0.3)
            assert (await service.job_result(raised.value.request_id)).status == "timeout"
        assert isinstance(raised.value, TimeoutError)
        assert raised.value.result.error.retryable

    async def test_overdue_before_it_was_taken_up_no_provider_is_called(self, database_url, llmock, db):
        async with running(database_url, nexus=False) as caller:
            handle = await caller.enqueue("simple", "Hello", timeout=0.01)
            with pytest.raises(RequestTimeout):  # swept with no nexus alive
                await handle.result(timeout=10)
            async with running(database_url, llmock.base_url(), reply_to="ai_results"):
                assert await until(lambda: empty(db, "ai_requests"))
                assert await until(lambda: empty(db, "ai_results"))
            assert await handle.status() == "timeout"
        assert not llmock.requests

    async def test_a_wait_ends_before_the_request_does(self, database_url):
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello")
            with pytest.raises(ResultPending, match=str(handle.request_id)) as raised:
                await handle.result(timeout=0.01)
            assert isinstance(raised.value, TimeoutError)
            assert await handle.status() == "enqueued"

    async def test_no_deadline(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello", timeout=None)
            assert (await service.job_result(handle.request_id)).deadline is None
        assert "deadline" not in (await messages(db, "ai_requests"))[0]

    async def test_the_deadline_begins_when_the_request_may_run(self, database_url):
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello", timeout=60, delay=3600)
            stored = await service.job_result(handle.request_id)
        assert timedelta(seconds=3650) < stored.deadline - stored.enqueued_at < timedelta(seconds=3670)


class TestLater:
    @pytest.mark.parametrize("by", ["delay", "not_before"])
    async def test_a_delayed_request_waits_outside_the_queue_and_then_runs(
        self, database_url, llmock, db, by
    ):
        async with running(database_url, llmock.base_url()) as service:
            due = datetime.now(UTC) + timedelta(seconds=2)
            when = {"delay": 2} if by == "delay" else {"not_before": due}
            handle = await service.enqueue("simple", "Hello", **when)
            assert await handle.status() == "scheduled"
            assert await empty(db, "ai_requests")
            result = await handle.result(timeout=20)
        assert result.timestamp >= due
        assert (await sql(db, "select count(*) from pgnexus.scheduled_requests"))[0].count == 0

    async def test_a_moment_in_the_past_is_now(self, database_url):
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello", not_before=datetime(2020, 1, 1, tzinfo=UTC))
            assert await handle.status() == "enqueued"

    async def test_cancelled_while_scheduled_it_never_runs(self, database_url, llmock, db):
        async with running(database_url, llmock.base_url()) as service:
            handle = await service.enqueue("simple", "Hello", delay=3600)
            assert await handle.cancel()
            assert not await handle.cancel()
            with pytest.raises(RequestCancelled):
                await handle.result()
        assert (await sql(db, "select count(*) from pgnexus.scheduled_requests"))[0].count == 0


class TestHandles:
    async def test_another_service_finds_it_by_its_id(self, database_url, llmock):
        llmock.reply("Paris.")
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(running(database_url, nexus=False))
            handle = await first.enqueue("simple", "Hello")
            second = await stack.enter_async_context(running(database_url, llmock.base_url()))
            for request_id in (handle.request_id, str(handle.request_id)):
                assert (await second.handle(request_id).result(timeout=20)).text == "Paris."
            assert (await handle.result(timeout=20)).text == "Paris."
            assert await handle.status() == "success"

    async def test_an_id_that_is_not_stored(self, database_url):
        async with running(database_url, nexus=False) as service:
            handle = service.handle(uuid4())
            for asked in (handle.status, handle.result, handle.cancel):
                with pytest.raises(UnknownRequest, match=str(handle.request_id)):
                    await asked()
            with pytest.raises(InvalidRequest, match="not-an-id"):
                service.handle("not-an-id")

    async def test_cancel_before_it_is_taken_up(self, database_url, llmock, db):
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello")
            assert await handle.cancel()
            assert not await handle.cancel()
            with pytest.raises(RequestCancelled):
                await handle.result()
            async with running(database_url, llmock.base_url()):
                assert await until(lambda: empty(db, "ai_requests"))
        assert not llmock.requests

    async def test_cancel_while_the_call_runs(self, database_url, llmock, db):
        llmock.delay(30)
        async with running(database_url, llmock.base_url()) as service:
            handle = await service.enqueue("simple", "Hello")
            assert await until(lambda: in_flight(service))
            assert await handle.cancel()
            with pytest.raises(RequestCancelled):
                await handle.result(timeout=10)

            async def gave_up():
                return (await service.queue_metrics()).in_flight == 0

            assert await until(gave_up)
        assert [row.status for row in await sql(db, "select status from pgflow.runs")] == ["failed"]

    async def test_a_waiter_that_is_there_first_is_woken(self, database_url, llmock):
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello")
            waiters = [asyncio.create_task(handle.result(timeout=20)) for _ in range(3)]
            async with running(database_url, llmock.base_url()):
                assert len({result.text for result in await asyncio.gather(*waiters)}) == 1


class TestSameRequest:
    async def test_an_idempotency_key_gives_the_same_request(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            first = await service.enqueue("simple", "Hello", idempotency_key="k")
            second = await service.enqueue("simple", "Hello", idempotency_key="k")
            other = await service.enqueue("simple", "Hello", idempotency_key="k2")
            assert (first.created, second.created, other.created) == (True, False, True)
            assert first.request_id == second.request_id != other.request_id
            with pytest.raises(InvalidRequest, match=f'"k".*{first.request_id}'):
                await service.enqueue("simple", "Something else", idempotency_key="k")
        assert len(await messages(db, "ai_requests")) == 2

    async def test_a_key_expires(self, database_url):
        async with running(database_url, nexus=False) as service:
            first = await service.enqueue("simple", "Hello", idempotency_key="k", idempotency_ttl=0.001)
            second = await service.enqueue("simple", "Another", idempotency_key="k", idempotency_ttl=0.001)
            assert first.request_id != second.request_id

    async def test_under_a_race_of_several_services(self, database_url, db):
        async with AsyncExitStack() as stack:
            services = [await stack.enter_async_context(running(database_url, nexus=False)) for _ in range(5)]
            handles = await asyncio.gather(
                *(
                    service.enqueue("simple", "Hello", idempotency_key="k")
                    for service in services
                    for _ in range(10)
                )
            )
        assert len({handle.request_id for handle in handles}) == 1
        assert sum(handle.created for handle in handles) == 1
        assert len(await messages(db, "ai_requests")) == 1

    async def test_calls_of_one_key_are_one_call(self, database_url, llmock):
        async with running(database_url, llmock.base_url()) as service:
            results = await asyncio.gather(
                *(service.call("simple", "Hello", idempotency_key="k") for _ in range(5))
            )
        assert len({result.request_id for result in results}) == 1
        assert len(llmock.requests) == 1

    async def test_the_same_request_id_twice(self, database_url, db):
        name = uuid4()
        async with running(database_url, nexus=False) as service:
            assert (await service.enqueue("simple", "Hello", request_id=name)).created
            again = await service.enqueue("simple", "Hello", request_id=str(name).upper())
            assert (again.created, again.request_id) == (False, name)
            with pytest.raises(InvalidRequest, match=f"{name} was used before with another body"):
                await service.enqueue("simple", "Another", request_id=name)
        assert len(await messages(db, "ai_requests")) == 1

    async def test_one_bad_request_spoils_no_other_of_its_batch(self, database_url):
        name = uuid4()
        async with running(database_url, nexus=False) as service:
            await service.enqueue("simple", "Hello", request_id=name)
            outcomes = await asyncio.gather(
                *(service.enqueue("simple", f"Number {i}") for i in range(20)),
                service.enqueue("simple", "Another", request_id=name),
                service.enqueue("simple", "Hello", reply_to="no_such_queue"),
                return_exceptions=True,
            )
        assert [type(outcome).__name__ for outcome in outcomes[20:]] == ["InvalidRequest"] * 2
        assert len({outcome.request_id for outcome in outcomes[:20]}) == 20


class TestMany:
    async def test_a_thousand_a_round_trip(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            handles = await service.enqueue_many(
                [{"messages": f"Number {i}", "complexity": "simple"} for i in range(2500)], agent_id="a1"
            )
            assert len(await service.search(agent_id="a1", limit=3000)) == 2500
        assert len({handle.request_id for handle in handles}) == 2500
        trips = await sql(
            db, "select count(*), count(distinct xmin::text) as transactions from pgnexus.job_results"
        )
        assert trips == [(2500, 3)]
        asked = [message["messages"][0]["content"] for message in await messages(db, "ai_requests")]
        assert asked == [f"Number {i}" for i in range(2500)]

    async def test_each_has_its_own_options(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            await service.enqueue_many(
                [
                    {"messages": "One", "model": "gpt-4o"},
                    {"messages": "Two", "task_type": "architect", "priority": "interactive"},
                    {"messages": [{"role": "user", "content": "Three"}], "temperature": 1},
                ],
                temperature=0.5,
            )
        [two] = await messages(db, "ai_requests_interactive")
        one, three = await messages(db, "ai_requests")
        assert (one["model"], one["temperature"], two["complexity"], three["temperature"]) == (
            "gpt-4o",
            0.5,
            "complex",
            1,
        )

    @pytest.mark.parametrize(
        "bad", [{"messages": ""}, {"messages": "x", "colour": 1}, "text", {1: 2}, {}, None]
    )
    async def test_a_bad_one_is_named_and_nothing_is_stored(self, database_url, db, bad):
        async with running(database_url, nexus=False) as service:
            with pytest.raises(InvalidRequest, match=r"requests\[1\]"):
                await service.enqueue_many([{"messages": "Hello"}, bad])
            assert await service.enqueue_many([]) == []
        assert await nothing_stored(db)

    async def test_large_ones_go_in_smaller_portions(self, database_url, db):
        text = "x" * 3_000_000
        async with running(database_url, nexus=False) as service:
            await service.enqueue_many([{"messages": f"{i}{text}"} for i in range(12)])
        [row] = await sql(
            db, "select count(*), count(distinct xmin::text) as transactions from pgnexus.job_results"
        )
        assert row.count == 12
        assert row.transactions > 1


class TestLanes:
    async def test_a_full_batch_lane_delays_no_interactive_request(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            await service.enqueue_many([{"messages": "Batch"}] * 5000, priority="batch")
            standard = await service.enqueue("simple", "Standard")
            interactive = await service.enqueue("simple", "Interactive", priority="interactive")
        taken = await sql(db, "select run_id from nexus.take_requests(%s, 100, 100)", uuid4())
        assert [row.run_id for row in taken[:2]] == [interactive.request_id, standard.request_id]
        assert len(taken) == 100

    async def test_each_priority_has_its_lane(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            for priority in ("interactive", "standard", "batch"):
                await service.enqueue("simple", "Hello", priority=priority)
        assert [[message["priority"] for message in await messages(db, lane)] for lane in LANES] == [
            ["interactive"],
            ["standard"],
            ["batch"],
        ]


class TestRecords:
    async def test_the_first_terminal_state_wins(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            for record, status in (
                (
                    lambda i: JobResult.record_success(
                        db, LLMResult(request_id=i, status="success", response="a")
                    ),
                    "success",
                ),
                (lambda i: JobResult.record_failure(db, i, ResultError(type="t", message="m")), "failed"),
                (lambda i: JobResult.record_timeout(db, i), "timeout"),
                (lambda i: JobResult.record_cancelled(db, i), "cancelled"),
            ):
                handle = await service.enqueue("simple", "Hello")
                assert await record(handle.request_id)
                assert await handle.status() == status
                assert not await record(handle.request_id)
                assert not await JobResult.record_failure(
                    db, handle.request_id, ResultError(type="x", message="y")
                )
                stored = await service.job_result(handle.request_id)
                assert stored.status == status
                assert (stored.error is None) == (status == "success")

    @pytest.mark.parametrize("first", ["timeout", "cancelled", "failed"])
    async def test_a_late_answer_is_booked_once_and_changes_nothing_else(self, database_url, db, first):
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cached_tokens": 4}
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello")
            if first == "failed":
                await JobResult.record_failure(db, handle.request_id, ResultError(type="t", message="m"))
            else:
                await getattr(JobResult, f"record_{first}")(db, handle.request_id)
            before = await service.job_result(handle.request_id)
            late = LLMResult(
                request_id=handle.request_id, status="success", response="Late.", usage=usage, cost="0.01"
            )
            for _ in range(2):
                assert not await JobResult.record_success(db, late)
            after = await service.job_result(handle.request_id)
        assert (after.prompt_tokens, after.completion_tokens, after.total_tokens, after.cached_tokens) == (
            10,
            5,
            15,
            4,
        )
        assert after.cost == Decimal("0.01")
        same = ("status", "output", "error", "finished_at", "model", "provider", "duration_ms")
        assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]

    async def test_a_result_without_a_row_is_stored(self, database_url, db):
        name = uuid4()
        assert await JobResult.record_success(db, LLMResult(request_id=name, status="success", response="Hi"))
        stored = await JobResult.get(db, name)
        assert (stored.status, stored.input, stored.to_result().text) == ("success", None, "Hi")

    async def test_searches(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            one = await service.enqueue("simple", "One", agent_id="a", task_type="parser")
            two = await service.enqueue("simple", "Two", agent_id="b", task_type="parser", workflow="mine")
            await JobResult.record_timeout(db, two.request_id)
            middle = (await service.job_result(two.request_id)).enqueued_at

            async def found(**filters):
                return [row.request_id for row in await service.search(**filters)]

            assert await found() == await found(task_type="parser") == [two.request_id, one.request_id]
            assert (
                await found(agent_id="a")
                == await found(status="enqueued")
                == await found(until=middle)
                == [one.request_id]
            )
            assert (
                await found(status="timeout")
                == await found(since=middle)
                == await found(workflow="mine")
                == [two.request_id]
            )
            assert await found(limit=1) == [two.request_id]
            assert await found(agent_id="nobody") == []

    async def test_a_retry_is_a_new_request(self, database_url, llmock, db):
        llmock.fail(400)
        llmock.reply("Now it works.")
        async with running(database_url, llmock.base_url()) as service:
            handle = await service.enqueue(
                "simple", "Hello", agent_id="a", tools=TOOLS, workflow="mine", max_tokens=9
            )
            with pytest.raises(RequestFailed):
                await handle.result(timeout=20)
            again = await service.retry(handle.request_id)
            assert again.request_id != handle.request_id
            assert (await again.result(timeout=20)).text == "Now it works."
            stored, first = (
                await service.job_result(again.request_id),
                await service.job_result(handle.request_id),
            )
        assert (stored.retry_of, stored.workflow, stored.agent_id) == (handle.request_id, "mine", "a")
        assert first.status == "failed"
        one, two = (record.body for record in llmock.requests)
        assert one == two

    async def test_only_what_has_ended_and_was_asked_here_can_be_retried(self, database_url, db):
        foreign = uuid4()
        await JobResult.record_timeout(db, foreign)
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello")
            with pytest.raises(InvalidRequest, match="enqueued"):
                await service.retry(handle.request_id)
            with pytest.raises(InvalidRequest, match=str(foreign)):
                await service.retry(foreign)
            with pytest.raises(UnknownRequest):
                await service.retry(uuid4())

    async def test_what_was_asked_by_sql_with_fields_of_its_own_can_be_retried(self, database_url, db):
        [row] = await sql(
            db,
            "select request_id from pgnexus.enqueue(array[%s::jsonb])",
            '{"messages": [{"role": "user", "content": "Hi"}], "x_team": "blue"}',
        )
        await JobResult.record_timeout(db, row.request_id)
        async with running(database_url, nexus=False) as service:
            again = await service.retry(row.request_id)
            assert (await service.job_result(again.request_id)).input["x_team"] == "blue"


class TestHealth:
    async def test_queue_metrics(self, database_url, llmock, db):
        async with running(database_url, nexus=False) as service:
            await service.enqueue("simple", "Hello", priority="batch")
            health = await service.queue_metrics()
            depth = {queue.queue: (queue.depth, queue.ready, queue.archived) for queue in health.queues}
            assert depth["ai_requests_batch"] == (1, 1, 0)
            assert depth["ai_requests"] == depth["ai_results"] == (0, 0, 0)
            assert (health.instances, health.calls, health.in_flight) == (0, 0, 0)
        async with running(database_url, llmock.base_url()) as service:
            await service.call("simple", "Hello")
            health = await service.queue_metrics()
            assert health.instances == await service.live_instances() == 1
            assert health.calls >= 1
            assert health.p50_ms <= health.p95_ms <= health.p99_ms
            assert health.calls_per_second > 0


async def empty(db, queue) -> bool:
    return not await messages(db, queue)


async def in_flight(service) -> int:
    return (await service.queue_metrics()).in_flight


async def test_a_database_that_defaults_to_serializable_works_the_whole_way(database_url, server, llmock):
    server.execute(
        "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", database_name(database_url)
    )
    async with (
        running(database_url, llmock.base_url()) as one,
        running(database_url, llmock.base_url()) as two,
    ):
        services = [one, two] * 20
        results = await asyncio.gather(
            *(
                service.call("simple", "Hello", idempotency_key=f"{i % 10}")
                for i, service in enumerate(services)
            )
        )
        later = await one.enqueue("simple", "Hello", delay=0.1)
        assert (await later.result(timeout=20)).ok
    assert len({result.request_id for result in results}) == 10
