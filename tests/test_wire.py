"""Strangers on the wire: requests by plain SQL, results by anyone, and everything that is neither."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from system import answered, archived, messages, put, running, sql, started, until

from pgnexus.errors import InvalidRequest, RequestFailed, RequestTimeout

HELLO = [{"role": "user", "content": "Hello"}]


def request(**fields) -> str:
    return json.dumps({"v": 1, "request_id": str(uuid4()), "messages": HELLO} | fields)


async def row_of(db, request_id):
    async def ended():
        rows = await sql(
            db,
            "select status, output, error from pgnexus.job_results where request_id = %s and finished_at is not null",
            UUID(str(request_id)),
        )
        return rows[0] if rows else None

    return await until(ended)


class TestProducers:
    async def test_a_request_by_plain_sql_is_answered_on_its_own_queue(self, database_url, llmock, db):
        llmock.reply("Paris.")
        await sql(db, "select nexus_api.create_queue('my_answers')")
        async with running(database_url, llmock.base_url()):
            asked = request(reply_to="my_answers", agent_id="theirs", x_trace="kept")
            await put(db, "ai_requests", asked)
            [answer] = await answered(db, "my_answers")
        assert answer["request_id"] == json.loads(asked)["request_id"]
        assert (answer["status"], answer["response"], answer["agent_id"]) == ("success", "Paris.", "theirs")
        assert "content" not in answer.get("message", {})
        assert await sql(db, "select 1 from pgnexus.job_results") == []
        assert [row.input["x_trace"] for row in await sql(db, "select input from pgflow.runs")] == ["kept"]

    async def test_without_a_queue_of_its_own_the_answer_is_stored_here(self, database_url, llmock, db):
        async with running(database_url, llmock.base_url()):
            for queue in ("ai_requests_interactive", "ai_requests", "ai_requests_batch"):
                asked = request()
                await put(db, queue, asked)
                assert (await row_of(db, json.loads(asked)["request_id"])).status == "success"

    @pytest.mark.parametrize(
        "queue", ["no_such_queue", "ai_requests", "llm_request_workflow", "", 5, None, "Robert'); --"]
    )
    async def test_a_queue_that_takes_no_results_is_replaced(self, database_url, llmock, db, queue):
        async with running(database_url, llmock.base_url()):
            asked = request(reply_to=queue)
            await put(db, "ai_requests", asked)
            assert await row_of(db, json.loads(asked)["request_id"])
        assert await messages(db, "ai_requests") == await messages(db, "llm_request_workflow") == []

    async def test_objects_and_texts_are_taken_for_tools(self, database_url, llmock, db):
        tools = [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
            }
        ]
        shape = {"type": "json_object"}
        async with running(database_url, llmock.base_url()):
            asked = [
                request(tools=tools, response_format=shape),
                request(tools=json.dumps(tools), response_format=json.dumps(shape)),
            ]
            await put(db, "ai_requests", *asked)
            for text in asked:
                assert (await row_of(db, json.loads(text)["request_id"])).status == "success"
        one, two = (record.body for record in llmock.requests)
        assert one == two
        assert (one["tools"], one["response_format"]) == (tools, shape)

    async def test_the_sql_function_fills_in_what_is_absent(self, database_url, llmock, db):
        async with running(database_url, llmock.base_url()) as service:
            [row] = await sql(
                db,
                "select * from pgnexus.enqueue(array[%s::jsonb])",
                json.dumps({"messages": HELLO, "task_type": "architect", "timeout": 60}),
            )
            assert (row.ordinal, row.status, row.created) == (1, "enqueued", True)
            assert (await service.handle(row.request_id).result(timeout=20)).ok
            stored = await service.job_result(row.request_id)
        assert (stored.complexity, stored.priority) == ("complex", "standard")
        assert timedelta(seconds=59) < stored.deadline - stored.enqueued_at < timedelta(seconds=61)

    @pytest.mark.parametrize(
        ("element", "words"),
        [
            ({}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": HELLO, "priority": "urgent"}, "urgent"),
            ({"messages": HELLO, "complexity": "hard"}, "hard"),
            ({"messages": HELLO, "reply_to": "no_such_queue"}, "names no queue"),
            ({"messages": HELLO, "reply_to": "ai_requests_batch"}, "queue of requests"),
            ({"messages": HELLO, "reply_to": "llm_request_workflow"}, "flow's own"),
            ({"messages": HELLO, "deadline": "infinity"}, "between the years"),
            ({"messages": HELLO, "not_before": "infinity"}, "between the years"),
            ({"messages": HELLO, "deadline": "20000-01-01T00:00:00Z"}, "between the years"),
            ({"messages": HELLO, "timeout": 1e12}, "between the years"),
            ([], "messages"),
        ],
    )
    async def test_the_sql_function_refuses_what_could_never_be_answered(self, db, element, words):
        good = json.dumps({"messages": HELLO})
        with pytest.raises(Exception, match=words) as raised:
            await sql(
                db, "select * from pgnexus.enqueue(array[%s::jsonb, %s::jsonb])", good, json.dumps(element)
            )
        assert raised.value.sqlstate == "PN002"
        assert await sql(db, "select 1 from pgnexus.job_results") == []
        assert await messages(db, "ai_requests") == []

    async def test_a_message_delivered_twice_is_answered_once(self, database_url, llmock, db):
        await sql(db, "select nexus_api.create_queue('my_answers')")
        good = request(reply_to="my_answers")
        overdue = request(reply_to="my_answers", deadline="2020-01-01T00:00:00Z")
        cancelled = request(reply_to="my_answers")
        await sql(db, "select nexus_api.cancel(array[%s::uuid])", json.loads(cancelled)["request_id"])
        invalid = request(reply_to="my_answers", v=2)
        async with running(database_url, llmock.base_url()):
            for _ in range(2):
                await put(
                    db, "ai_requests", good, overdue, cancelled, invalid, good, overdue, cancelled, invalid
                )
            last = request(reply_to="my_answers")
            await put(db, "ai_requests", last)
            await answered(db, "my_answers", 5)
            answers = await answered(db, "my_answers", 5)
        status = {answer["request_id"]: answer["status"] for answer in answers}
        assert len(answers) == 5
        expected = {
            good: "success",
            overdue: "timeout",
            cancelled: "cancelled",
            invalid: "failed",
            last: "success",
        }
        assert status == {json.loads(text)["request_id"]: outcome for text, outcome in expected.items()}
        assert len(llmock.requests) == 2

    async def test_many_that_need_no_call_do_not_hold_up_the_one_behind_them(self, database_url, llmock, db):
        async with running(database_url, nexus=False):
            await put(
                db, "ai_requests", *(request(deadline="2020-01-01T00:00:00Z") for _ in range(1200)), "{}", "7"
            )
        async with running(database_url, llmock.base_url(), poll_interval=60.0) as service:
            assert (await service.call("simple", "Hello")).ok


INVALID = [
    ("v", 2),
    ("v", None),
    ("messages", []),
    ("messages", "Hello"),
    ("messages", [{"role": "wizard", "content": "Hello"}]),
    ("messages", [{"role": "user"}]),
    ("messages", None),
    ("complexity", "hard"),
    ("priority", "urgent"),
    ("temperature", 5),
    ("max_tokens", 0),
    ("tools", "not JSON"),
    ("tools", {"an": "object"}),
    ("response_format", 5),
    ("deadline", "rubbish"),
    ("deadline", "infinity"),
    ("deadline", "2030-01-01T00:00:00"),
    ("deadline", 4102444800),
    ("deadline", {}),
    ("agent_id", {"not": "a text"}),
    ("api_version", "telepathy"),
]


@pytest.mark.parametrize(("field", "value"), INVALID, ids=lambda value: str(value)[:20])
async def test_an_invalid_request_becomes_a_failed_result(database_url, llmock, db, field, value):
    asked = request(**{field: value})
    async with running(database_url, llmock.base_url()) as service:
        await put(db, "ai_requests", asked)
        row = await row_of(db, json.loads(asked)["request_id"])
        with pytest.raises(RequestFailed):
            await service.handle(json.loads(asked)["request_id"]).result()
    assert (row.status, row.error["type"], row.error["retryable"]) == ("failed", "invalid_request", False)
    assert not llmock.requests


class TestRubbish:
    @pytest.mark.parametrize(
        "text", ["null", "5", '"text"', "[]", "{}", '{"request_id": "not an id"}', '{"request_id": 7}']
    )
    async def test_what_has_no_request_id_goes_to_the_archive_with_the_reason(
        self, database_url, llmock, db, text
    ):
        async with running(database_url, llmock.base_url()):
            await put(db, "ai_requests", text, asked := request())
            assert (await row_of(db, json.loads(asked)["request_id"])).status == "success"
        assert await archived(db, "ai_requests") == [
            (json.loads(text), "no request: needs request_id, a UUID")
        ]

    @pytest.mark.parametrize("depth", [300, 3000])
    async def test_what_is_nested_too_deep_fails_alone(self, database_url, llmock, db, depth):
        deep = "[" * depth + "]" * depth
        name = str(uuid4())
        asked = request(
            request_id=name, messages=[{"role": "user", "content": [{"type": "text", "text": 0}]}]
        )
        asked = asked.replace("0}", deep + "}")
        async with running(database_url, llmock.base_url()) as service:
            await put(db, "ai_requests", asked)
            assert (await row_of(db, name)).status == "failed"
            assert (await service.call("simple", "Hello")).ok

    async def test_a_huge_number_is_a_number(self, database_url, llmock, db):
        asked = request(max_tokens=10**400, seed=2**62, metadata={"n": 2**70})
        async with running(database_url, llmock.base_url()):
            await put(db, "ai_requests", asked)
            assert (await row_of(db, json.loads(asked)["request_id"])).status == "success"
        assert llmock.last_request.body["seed"] == 2**62

    async def test_a_number_too_long_fails_alone(self, database_url, llmock, db):
        name = str(uuid4())
        long = request(request_id=name, seed=7).replace('"seed": 7', '"seed": 1' + "0" * 10000)
        async with running(database_url, llmock.base_url()) as service:
            await put(db, "ai_requests", long)
            assert (await row_of(db, name)).error["type"] == "invalid_request"
            assert (await service.call("simple", "Hello")).ok

    @pytest.mark.parametrize(
        "text",
        [
            "null",
            "[]",
            "5",
            "{}",
            '{"request_id": "x", "status": "success"}',
            '{"status": "success"}',
            '{"request_id": "01980000-0000-4000-8000-000000000000"}',
            '{"request_id": "01980000-0000-4000-8000-000000000000", "status": "perhaps"}',
        ],
    )
    async def test_what_is_no_result_goes_to_the_archive(self, database_url, llmock, db, text):
        async with running(database_url, llmock.base_url()) as service:
            await put(db, "ai_results", text)
            assert (await service.call("simple", "Hello")).ok
            [(message, reason)] = await until(lambda: archived(db, "ai_results"))
        assert message == json.loads(text)
        assert reason.startswith("no result")

    @pytest.mark.parametrize(
        "fields",
        [
            {"response": 5, "message": "text", "finish_reason": {}, "error": 7, "usage": "none", "cost": -1},
            {
                "response": {"a": 1},
                "cost": "NaN",
                "latency_ms": -5,
                "attempts": 10**30,
                "timestamp": "rubbish",
            },
            {"usage": {"prompt_tokens": -1, "completion_tokens": 1.5, "total_tokens": 10**40}, "cost": "1e5"},
            {"cached": "perhaps", "shared": 7, "estimated": {}},
            {"status": "failed"},
            {"status": "failed", "error": {"type": 5, "message": None, "retryable": "yes"}},
            {"status": "failed", "error": "it broke"},
            {"status": "cancelled", "error": [], "model": 7, "provider": {}, "agent_id": "x" * 9000},
        ],
    )
    async def test_a_result_of_an_odd_form_is_stored_and_can_be_read(self, database_url, db, fields):
        async with running(database_url, nexus=False) as service:
            handle = await service.enqueue("simple", "Hello")
            other = await service.enqueue("simple", "Hello")
            waits = [asyncio.create_task(one.result(timeout=30)) for one in (handle, other)]
            stranger = {"request_id": str(uuid4()), "status": "success"} | fields
            await put(
                db,
                "ai_results",
                json.dumps({"request_id": str(handle.request_id), "status": "success"} | fields),
                json.dumps(stranger),
                json.dumps({"request_id": str(other.request_id), "status": "success", "response": "fine"}),
            )
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
            assert outcomes[1].text == "fine"
            if isinstance(outcomes[0], Exception):
                assert outcomes[0].result.status == fields["status"]
                assert isinstance(outcomes[0].result.error.message, str)
            stored = await service.job_result(stranger["request_id"])
            assert stored.to_result().status == stranger["status"]

    async def test_a_result_nested_too_deep_disturbs_no_other(self, database_url, db):
        deep = "[" * 3000 + "]" * 3000
        async with running(database_url, nexus=False) as service:
            handles = [await service.enqueue("simple", "Hello") for _ in range(2)]
            waits = [asyncio.create_task(handle.result(timeout=30)) for handle in handles]
            await put(
                db,
                "ai_results",
                f'{{"request_id": "{handles[0].request_id}", "status": "success", "message": {{"x": {deep}}}}}',
                f'{{"request_id": "{handles[1].request_id}", "status": "success", "response": "fine"}}',
            )
            outcomes = await asyncio.gather(*waits)
        assert [outcome.text for outcome in outcomes] == ["", "fine"]

    async def test_a_foreign_notify_disturbs_nobody(self, database_url, llmock, db):
        async with running(database_url, llmock.base_url()) as service:
            for channel in ("pgnexus_done", "pgnexus_cancel", "pgnexus_requests", "pgnexus_results"):
                await sql(db, "select pg_notify(%s, 'not,an id')", channel)
            assert (await service.call("simple", "Hello")).ok


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4
        )
    ),
    max_leaves=10,
)
names = st.sampled_from(
    ["v", "messages", "status", "complexity", "model", "provider", "reply_to", "deadline", "priority", "max_tokens",
     "temperature", "stop", "seed", "tools", "response_format", "response", "message", "usage", "cost", "latency_ms",
     "attempts", "finish_reason", "error", "timestamp", "agent_id", "metadata", "cached", "shared", "estimated"]
)  # fmt: skip
statuses = st.sampled_from(["success", "failed", "timeout", "cancelled"])


def objects(required: dict) -> st.SearchStrategy:
    return st.builds(lambda fields, fixed: fields | fixed, st.dictionaries(names, anything, max_size=6),
                     st.fixed_dictionaries(required))  # fmt: skip


fuzz = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


class TestFuzzed:
    async def test_any_json_among_the_requests_is_accounted_for(self, database_url, llmock, db):
        llmock.tool_mode("off")
        async with started(database_url, llmock.base_url(), max_attempts=1) as app:
            loop = asyncio.get_running_loop()

            async def go(batch: list) -> None:
                texts = [json.dumps(message) for message in batch]
                before = len(await archived(db, "ai_requests"))
                await put(db, "ai_requests", *texts)
                assert (await app.service.call("simple", "Hello", timeout=30)).ok
                ids = {UUID(m["request_id"]) for m in batch if isinstance(m, dict) and "request_id" in m}
                for name in ids:
                    await row_of(db, name)
                without = sum(not (isinstance(m, dict) and "request_id" in m) for m in batch)
                assert len(await archived(db, "ai_requests")) - before == without

            @fuzz
            @given(
                st.lists(
                    anything | objects({"request_id": st.uuids(version=4).map(str)}), min_size=1, max_size=8
                )
            )
            def check(batch: list) -> None:
                asyncio.run_coroutine_threadsafe(go(batch), loop).result(60)

            await asyncio.to_thread(check)

    async def test_any_json_among_the_results_is_accounted_for(self, database_url, db):
        async with running(database_url, nexus=False) as service:
            loop = asyncio.get_running_loop()

            async def go(batch: list) -> None:
                before = len(await archived(db, "ai_results"))
                handle = await service.enqueue("simple", "Hello")
                good = {"request_id": str(handle.request_id), "status": "success", "response": "fine"}
                await put(db, "ai_results", *(json.dumps(message) for message in [*batch, good]))
                assert (await handle.result(timeout=30)).text == "fine"
                known = [m for m in batch if isinstance(m, dict) and "request_id" in m]
                for message in known:
                    (await service.job_result(message["request_id"])).to_result()
                assert len(await archived(db, "ai_results")) - before == len(batch) - len(known)

            results = objects({"request_id": st.uuids(version=4).map(str), "status": statuses})

            @fuzz
            @given(st.lists(anything | results, max_size=8))
            def check(batch: list) -> None:
                asyncio.run_coroutine_threadsafe(go(batch), loop).result(60)

            await asyncio.to_thread(check)


async def test_a_deadline_by_plain_sql_is_kept(database_url, llmock, db):
    llmock.delay(30)
    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    async with running(database_url, llmock.base_url()) as service:
        asked = request(deadline=soon)
        await put(db, "ai_requests", asked)
        assert (await row_of(db, json.loads(asked)["request_id"])).status == "timeout"
        with pytest.raises(RequestTimeout):
            await service.handle(json.loads(asked)["request_id"]).result()


async def test_a_lane_is_no_place_for_results_at_the_call(database_url):
    async with running(database_url, nexus=False) as service:
        for queue in ("ai_requests", "llm_request_workflow"):
            with pytest.raises(InvalidRequest, match="queue of requests"):
                await service.enqueue("simple", "Hello", reply_to=queue)
