"""All providers played by a function of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import pgnexus
from pgnexus.errors import ModelNotFound, QuotaSpent, RateLimited, RequestFailed, TooManyRequests
from pgnexus.messages import LLMRequest, Usage, new_request_id
from pgnexus.providers import Completion
from pgnexus.settings import Settings
from pgnexus.testing import FakeLLM
from tests.system import fast


@asynccontextmanager
async def opened(url: str, fake: FakeLLM, **settings: Any) -> AsyncIterator[pgnexus.LLMService]:
    async with pgnexus.open(fast(url, **settings), providers=fake) as llm:
        yield llm


async def test_it_answers_and_tells_what_it_was_asked(database_url):
    fake = FakeLLM(lambda request: f"said {request.messages[-1].content}")
    async with opened(database_url, fake) as llm:
        result = await llm.call("simple", "hello there", agent_id="ann", task_type="parser")
    assert result.text == "said hello there"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (2, 3)
    [call] = fake.calls
    assert (call.prompt, call.request.agent_id) == ("hello there", "ann")
    assert (call.provider, call.model) == (result.provider, result.model)


async def test_routes_and_models_are_those_of_the_settings(database_url):
    fake = FakeLLM()
    async with opened(database_url, fake, routes={"simple": ["mistral/mistral-small-latest"]}) as llm:
        await llm.call("simple", "x")
        await llm.call("gpt-4o", "x")
    assert [(call.provider, call.model) for call in fake.calls] == [
        ("mistral", "mistral-small-latest"),
        ("openai", "gpt-4o"),
    ]


async def test_one_that_fails_is_followed_by_the_next_of_the_route(database_url):
    fake = FakeLLM()

    def answer(request: pgnexus.LLMRequest) -> Any:
        return ModelNotFound("gone") if len(fake.calls) == 1 else "second"

    fake.answer = answer
    async with opened(database_url, fake, routes={"simple": ["openai/a", "groq/b"]}) as llm:
        result = await llm.call("simple", "x")
    assert (result.text, result.provider, result.attempts) == ("second", "groq", 2)


async def test_errors_may_be_raised_or_returned(database_url):
    async def answer(request: pgnexus.LLMRequest) -> str:
        raise TooManyRequests("slow down")

    async with opened(database_url, FakeLLM(answer), max_attempts=1) as llm:
        with pytest.raises(RateLimited, match="slow down"):
            await llm.call("gpt-4o", "x")
    async with opened(database_url, FakeLLM(QuotaSpent("broke"))) as llm:
        with pytest.raises(pgnexus.QuotaExceeded, match="broke"):
            await llm.call("gpt-4o", "x")


async def test_a_fault_of_the_tests_function_fails_the_request(database_url, caplog):
    def answer(request: pgnexus.LLMRequest) -> str:
        assert "pears" in str(request.messages), "not what was wanted"
        return "ok"

    async with opened(database_url, FakeLLM(answer)) as llm:
        with pytest.raises(RequestFailed, match="AssertionError"):
            await llm.call("gpt-4o", "apples")
    assert "not what was wanted" in caplog.text


async def test_a_slow_one_is_past_its_time(database_url):
    async def answer(request: pgnexus.LLMRequest) -> str:
        await asyncio.Event().wait()
        return "never"

    async with opened(database_url, FakeLLM(answer), provider_timeout=0.05, max_attempts=1) as llm:
        with pytest.raises(pgnexus.RequestError, match="no answer within"):
            await llm.call("gpt-4o", "x")


async def test_a_whole_completion_is_passed_on(database_url):
    usage = Usage(prompt_tokens=1000, completion_tokens=10, total_tokens=1010)
    completion = Completion({"role": "assistant", "content": "x"}, "x", "gpt-4o", "length", usage)
    async with opened(database_url, FakeLLM(completion)) as llm:
        result = await llm.call("gpt-4o", "x")
    assert (result.finish_reason, result.usage, result.cost) == ("length", usage, result.cost)
    assert result.cost is not None


async def test_an_answer_is_streamed_word_by_word():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {
        "role": "assistant",
        "content": "It is  Paris.",
        "reasoning_content": "Let me see",
        "tool_calls": [call],
    }
    completion = Completion(message, "It is  Paris.", "gpt-4o", "tool_calls", Usage())
    provider, deltas = FakeLLM(completion)(Settings())["openai"], []
    request = LLMRequest(request_id=new_request_id(), messages=[{"role": "user", "content": "x"}])
    got = await provider.complete(request, "gpt-4o", timeout=5, on_delta=deltas.append)
    assert got == completion
    assert [delta.text for delta in deltas if delta.text] == ["It ", "is  ", "Paris."]
    assert [delta.reasoning for delta in deltas if delta.reasoning] == ["Let ", "me ", "see"]
    assert [delta.tool_calls for delta in deltas if delta.tool_calls] == [({"index": 0, **call},)]


@pytest.mark.parametrize(
    ("schema", "answer", "text"),
    [
        ({"properties": {"value": {"type": "array"}}}, [1], '{"value":[1]}'),
        ({"properties": {"value": {"type": "array"}}}, {"value": [1]}, '{"value":[1]}'),
        ({"properties": {"score": {"type": "integer"}}}, {"score": 1}, '{"score":1}'),
        (None, {"score": 1}, '{"score":1}'),
    ],
)
async def test_values_are_said_as_json(database_url, schema, answer, text):
    format = (
        None if schema is None else {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    )
    async with opened(database_url, FakeLLM(answer)) as llm:
        assert (await llm.call("simple", "x", response_format=format)).text == text


async def test_a_stream_is_read_as_from_any_provider(database_url):
    async with opened(database_url, FakeLLM("It is Paris.")) as llm, llm.stream("simple", "x") as stream:
        texts = [chunk.text async for chunk in stream]
        result = await stream.result()
    assert "".join(texts) == result.text == "It is Paris."
