"""LLMRequestWorkflow: what one claim comes to, over a real wire."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest
from system import fast, running

from pgnexus.errors import RequestTimeout
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.workflow import Claim, LLMRequestWorkflow
from pgnexus.providers import build_providers

Make = Callable[..., LLMRequestWorkflow]


@pytest.fixture
async def make(llmock) -> AsyncIterator[Make]:
    built = []

    def workflow(**settings) -> LLMRequestWorkflow:
        loaded = fast("postgresql://nowhere", llmock.base_url(), **settings)
        providers = build_providers(loaded, {})
        built.extend(providers.values())
        return LLMRequestWorkflow(LLMRouter(loaded, providers), loaded)

    yield workflow
    for provider in built:
        await provider.close()


def claim(attempt: int = 1, seconds: float | None = None, **fields) -> Claim:
    name = uuid4()
    given = {"request_id": str(name), "messages": [{"role": "user", "content": "Hello"}]} | fields
    return Claim(name, "validate", attempt, given, None if seconds is None else time.monotonic() + seconds)


async def test_an_answer(make, llmock):
    llmock.reply("Hi.")
    settled = await make().run(asked := claim(agent_id="a1"), [])
    result = settled.result
    assert (settled.outcome, result["request_id"], result["agent_id"]) == ("success", str(asked.run_id), "a1")
    assert (result["response"], result["status"], result["attempts"]) == ("Hi.", "success", 1)
    assert "content" not in result.get("message", {})
    item = json.loads(settled.to_item())
    assert (item["run_id"], item["step"], item["attempt"]) == (str(asked.run_id), "validate", 1)
    assert item["calls"][0]["outcome"] == "success"


async def test_what_may_pass_is_put_back_with_a_growing_delay_of_full_jitter(make, llmock):
    llmock.fail(500, times=None)
    workflow = make(retry_base_delay=1.0, max_attempts=100)
    for attempt, ceiling in {1: 2, 2: 4, 5: 32, 60: 300}.items():
        settled = [await workflow.run(claim(attempt), []) for _ in range(20)]
        assert {one.outcome for one in settled} == {"retry"}
        delays = sorted(one.delay for one in settled)
        assert 0 <= delays[0] < ceiling / 2 < delays[-1] <= ceiling


async def test_the_wait_that_the_vendor_asks_for_is_kept(make, llmock):
    llmock.rate_limit(retry_after=17)
    settled = await make().run(claim(), [])
    assert (settled.outcome, settled.delay) == ("retry", 17)


async def test_a_next_try_after_the_deadline_is_a_timeout_now(make, llmock):
    llmock.rate_limit(retry_after=1700)
    settled = await make().run(claim(seconds=500), [])
    assert (settled.outcome, settled.details["status"]) == ("failed", "timeout")
    assert "429" in settled.details["error"]["message"]
    assert (settled.details["attempts"], settled.details["provider"]) == (1, "openai")


async def test_a_next_try_before_the_deadline_is_made(make, llmock):
    llmock.rate_limit(retry_after=17)
    settled = await make().run(claim(seconds=500), [])
    assert (settled.outcome, settled.delay) == ("retry", 17)


async def test_a_stored_timeout_names_the_last_error_and_counts_the_calls(database_url, llmock):
    llmock.fail(500, times=None)
    # asked at once, and again after up to 2 s, 4 s, ...
    async with running(database_url, llmock.base_url(), retry_base_delay=1.0, max_attempts=100) as service:
        with pytest.raises(RequestTimeout, match="500") as raised:
            await service.call("gpt-4o-mini", "Hello", timeout=2.6)
        stored = await service.job_result(raised.value.request_id)
    assert stored.status == "timeout"
    assert stored.attempts == len(llmock.requests) >= 1
    assert (stored.provider, stored.model is not None) == ("openai", True)


async def test_a_call_that_is_given_up_at_the_deadline_is_told_before_it(make, llmock):
    llmock.delay(30)
    settled = await make(max_attempts=1).run(asked := claim(seconds=1.0), [])
    assert asked.seconds_left() > 0
    assert (settled.details["status"], settled.details["attempts"]) == ("timeout", 1)


async def test_the_last_attempt_fails(make, llmock):
    llmock.fail(503)
    settled = await make(max_attempts=3).run(claim(3), [])
    assert (settled.outcome, settled.details["status"]) == ("failed", "failed")
    assert settled.details["error"] | {"message": ""} == {
        "type": "provider_unavailable",
        "message": "",
        "retryable": True,
    }
    assert len(settled.calls) == 1


async def test_what_cannot_pass_fails_at_once(make, llmock):
    llmock.fail(400)
    settled = await make().run(claim(), [])
    assert (settled.outcome, settled.details["error"]["type"]) == ("failed", "bad_request")


async def test_past_the_deadline_nobody_is_asked(make, llmock):
    settled = await make().run(claim(seconds=-1), [])
    assert (settled.outcome, settled.details["status"]) == ("failed", "timeout")
    assert not llmock.requests


async def test_what_is_no_request_is_told_by_its_field(make, llmock):
    settled = await make().run(claim(temperature=7, agent_id=["x"]), [])
    assert settled.details["error"]["type"] == "invalid_request"
    assert "temperature" in settled.details["error"]["message"]
    assert "agent_id" not in settled.details
    unread = Claim(uuid4(), "validate", 1, "[[[", None)
    assert (await make().run(unread, [])).details["error"]["type"] == "invalid_request"
    assert not llmock.requests


@pytest.mark.parametrize("end", ["cancelled", "broken"])
def test_other_ends_are_results_too(end):
    settled = getattr(LLMRequestWorkflow, end)(claim(), [])
    assert settled.outcome == "failed"
    assert (
        json.loads(settled.to_item())["details"]["error"]["type"]
        == {"cancelled": "cancelled", "broken": "internal"}[end]
    )


def test_a_release_counts_no_attempt_and_says_nothing():
    item = json.loads(LLMRequestWorkflow.release(claim(), []).to_item())
    assert (item["outcome"], item["calls"], "result" in item, "details" in item) == (
        "release",
        [],
        False,
        False,
    )


def nested(levels: int) -> dict[str, object]:
    deep: dict[str, object] = {}
    for _ in range(levels):
        deep = {"items": deep}
    return deep


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": nested(260)}}]),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": nested(260)}}),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "Hello", "more": nested(260)}]}]),
    ],
)
async def test_what_no_vendor_s_json_may_hold_is_refused_by_name(make, llmock, name, value):
    settled = await make().run(claim(**{name: value}), [])
    error = settled.details["error"]
    assert (error["type"], llmock.requests) == ("invalid_request", [])
    assert error["message"].startswith(name)
    assert "nested deeper than 100 levels" in error["message"]
