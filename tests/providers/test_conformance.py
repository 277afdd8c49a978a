"""The same cases over each wire, against llmock where it can play them; what a wire cannot do is in one table."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from llmock.scenarios import Reply, ToolCall
from provider_server import KEY, replies
from vendor_wires import CANNOT, WAYS, Way, served, whole

from pgnexus.errors import (
    AnswerTooLong,
    AuthenticationFailed,
    BadAnswer,
    BudgetSpent,
    ContentFiltered,
    ContextTooLong,
    InternalFailure,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    TooManyRequests,
)
from pgnexus.messages import LLMRequest, Usage
from pgnexus.providers import Completion, Provider
from pgnexus.providers.catalogue import catalogue
from pgnexus.providers.provider import Delta
from pgnexus.settings import Settings

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}
    for name in ("weather", "time")
]
CALLED = [
    {"role": "user", "content": "Weather and time in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{name}",
                "type": "function",
                "function": {"name": name, "arguments": '{"city":"Paris"}'},
            }
            for name in ("weather", "time")
        ],
    },
    {"role": "tool", "tool_call_id": "call_weather", "content": "rain in Paris"},
    {"role": "tool", "tool_call_id": "call_time", "content": "noon in Paris"},
]
Make = Callable[..., Provider]


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def make(way: Way) -> AsyncIterator[Make]:
    """The way's provider at a root URL; closed at the end."""
    built: list[Provider] = []

    def open_(root: str, **settings: Any) -> Provider:
        built.append(way.provider(root, **settings))
        return built[-1]

    yield open_
    for provider in built:
        await provider.close()


async def complete(provider: Provider, way: Way, ask: Any, on_delta: Any = None, **fields: Any) -> Completion:
    timeout = fields.pop("timeout", 60)  # the SDKs take seconds to be imported
    request: LLMRequest = ask(**({"api_version": way.api} | fields))
    return await provider.complete(request, way.model, timeout=timeout, on_delta=on_delta)


def can(way: Way, what: str) -> bool:
    return way.name not in CANNOT[what]


class TestAnswers:
    async def test_plain(self, way, make, llmock, ask):
        llmock.reply("Paris.")
        got = await complete(make(llmock.url), way, ask)
        assert (got.text, got.finish_reason, got.mended) == ("Paris.", "stop", False)
        assert got.message["role"] == "assistant"
        assert got.message["content"] == "Paris."
        assert got.model == way.model
        assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens > 0

    @pytest.mark.parametrize("role", ["system", "developer"])
    async def test_a_system_message_and_a_users(self, way, make, llmock, ask, role):
        messages = [{"role": role, "content": "Be terse."}, {"role": "user", "content": "Capital?"}]
        await complete(make(llmock.url), way, ask, messages=messages)
        sent = json.dumps(llmock.last_request.body)
        assert "Be terse." in sent
        assert "Capital?" in sent

    async def test_system_messages_in_parts(self, way, make, llmock, ask):
        system = {"role": "system", "content": [{"type": "text", "text": "Be terse."}]}
        messages = [
            system,
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Capital?"},
        ]
        got = await complete(make(llmock.url), way, ask, messages=messages)
        assert got.finish_reason == "stop"
        assert "Be kind." in json.dumps(llmock.last_request.body)

    async def test_a_tool_call(self, way, make, llmock, ask):
        llmock.call_tool("weather", {"city": "Paris"})
        got = await complete(make(llmock.url), way, ask, tools=TOOLS, tool_choice="required")
        assert (got.finish_reason, got.text) == ("tool_calls", None)
        (call,) = got.message["tool_calls"]
        assert call["id"]
        assert (call["type"], call["function"]["name"]) == ("function", "weather")
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}

    async def test_parallel_tool_calls(self, way, make, llmock, ask):
        calls = (ToolCall("weather", {"city": "Paris"}), ToolCall("time", {"city": "Paris"}))
        llmock.add(Reply(tool_calls=calls))
        got = await complete(make(llmock.url), way, ask, tools=TOOLS)
        names = [call["function"]["name"] for call in got.message["tool_calls"]]
        assert (names, got.finish_reason) == (["weather", "time"], "tool_calls")
        assert len({call["id"] for call in got.message["tool_calls"]}) == 2

    async def test_results_of_tools(self, way, make, llmock, ask):
        llmock.reply("Rain at noon.")
        got = await complete(make(llmock.url), way, ask, messages=CALLED, tools=TOOLS)
        assert got.text == "Rain at noon."
        sent = json.dumps(llmock.last_request.body)
        assert "rain in Paris" in sent
        assert "noon in Paris" in sent
        assert sent.index("rain in Paris") < sent.index("noon in Paris")

    async def test_a_json_schema(self, way, make, llmock, ask):
        wanted = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
        got = await complete(make(llmock.url), way, ask, response_format=wanted)
        assert '"city"' in json.dumps(llmock.last_request.body)
        if way.vendor != "anthropic":  # llmock knows an older form of Anthropic's
            assert list(json.loads(got.text or "")) == ["city"]

    async def test_json_without_a_schema(self, way, make, llmock, ask):
        asked = complete(make(llmock.url), way, ask, response_format={"type": "json_object"})
        if can(way, "JSON without a schema"):
            assert isinstance(json.loads((await asked).text or ""), dict)
        else:
            await refused(asked, llmock)

    async def test_an_image(self, way, make, llmock, ask):
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        content = [{"type": "text", "text": "What is this?"}, image]
        got = await complete(make(llmock.url), way, ask, messages=[{"role": "user", "content": content}])
        assert got.finish_reason == "stop"
        assert PIXEL[:60] in json.dumps(llmock.last_request.body)

    async def test_an_end_at_max_tokens(self, way, make, llmock, ask):
        if way.api == "responses":  # llmock says "completed" whatever is scripted
            body = whole(way, "Par") | {"status": "incomplete"}
            async with served(
                replies(body | {"incomplete_details": {"reason": "max_output_tokens"}})
            ) as root:
                got = await complete(make(root), way, ask, max_tokens=17)
        else:
            llmock.add(Reply(text="Par", finish_reason="length"))
            got = await complete(make(llmock.url), way, ask, max_tokens=17)
            assert "17" in json.dumps(llmock.last_request.body)
        assert (got.text, got.finish_reason) == ("Par", "length")

    async def test_stop_sequences(self, way, make, llmock, ask):
        asked = complete(make(llmock.url), way, ask, stop=["END"])
        if can(way, "stop sequences"):
            await asked
            assert '["END"]' in json.dumps(llmock.last_request.body)
        else:
            await refused(asked, llmock)

    async def test_parameters(self, way, make, llmock, ask):
        await complete(make(llmock.url), way, ask, temperature=0.5, top_p=0.9, max_tokens=77, seed=4242)
        sent = json.dumps(llmock.last_request.body)
        assert all(value in sent for value in ("0.5", "0.9", "77"))
        assert ("4242" in sent) == can(way, "seed")

    async def test_usage(self, way, make, ask):
        async with served(replies(whole(way), Content_Type="application/json")) as root:
            got = await complete(make(root), way, ask)
        assert got.usage == Usage(
            prompt_tokens=100,
            completion_tokens=20,
            total_tokens=120,
            cached_tokens=80,
            cache_write_tokens=5 if can(way, "tokens written to a cache") else 0,
            reasoning_tokens=7 if can(way, "tokens of reasoning") else 0,
        )

    async def test_reasoning(self, way, make, ask):
        async with served(replies(whole(way, thought="Hm."), Content_Type="application/json")) as root:
            got = await complete(make(root), way, ask)
        assert (got.text, got.message["reasoning_content"]) == ("Paris.", "Hm.")

    async def test_what_cannot_be_stored_is_mended(self, way, make, ask):
        raw = json.dumps(whole(way, "a\x00b \ud800 c")).encode()
        async with served(replies(raw, Content_Type="application/json")) as root:
            got = await complete(make(root), way, ask)
        assert got.text == "a\ufffdb \ufffd c"
        assert got.mended


async def refused(asked: Any, llmock: Any) -> None:
    """Refused here, before anybody was asked, so that the next candidate is."""
    with pytest.raises(ProviderError) as caught:
        await asked
    assert type(caught.value) is ProviderError
    assert not llmock.requests


class TestFailures:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_rate_limit(self, way, make, llmock, ask, stream):
        llmock.rate_limit(times=None, retry_after=7)
        with pytest.raises(TooManyRequests) as caught:
            await complete(make(llmock.url), way, ask, on_delta=(lambda _: None) if stream else None)
        assert (caught.value.status, caught.value.retry_after) == (429, 7)
        assert len(llmock.requests) == 1  # retries are ours

    @pytest.mark.parametrize("status", [500, 503, 529])
    async def test_a_vendor_that_is_down(self, way, make, llmock, ask, status):
        llmock.fail(status, times=None)
        with pytest.raises(ProviderUnavailable) as caught:
            await complete(make(llmock.url), way, ask)
        assert caught.value.status == status
        assert len(llmock.requests) == 1

    async def test_a_wrong_key(self, way, make, llmock, ask):
        llmock.fail(401, times=None, message=f"bad key {KEY}")
        with pytest.raises(AuthenticationFailed) as caught:
            await complete(make(llmock.url), way, ask)
        assert caught.value.status == 401
        assert KEY not in str(caught.value)

    async def test_a_prompt_too_long(self, way, make, llmock, ask):
        llmock.context_overflow(times=None)
        with pytest.raises(ContextTooLong) as caught:
            await complete(make(llmock.url), way, ask)
        assert caught.value.status == 400

    async def test_a_content_filter(self, way, make, llmock, ask):
        if way.api == "responses":  # llmock says "completed" whatever is scripted
            body = whole(way) | {"status": "incomplete", "output": []}
            handler = replies(body | {"incomplete_details": {"reason": "content_filter"}})
            async with served(handler) as root:
                with pytest.raises(ContentFiltered):
                    await complete(make(root), way, ask)
            return
        llmock.add(Reply(text="", tool_calls=(), finish_reason="content_filter", times=None))
        with pytest.raises(ContentFiltered):
            await complete(make(llmock.url), way, ask)

    async def test_nobody_there(self, way, make, ask):
        with pytest.raises(ProviderUnavailable):
            await complete(make("http://127.0.0.1:9"), way, ask)

    async def test_an_answer_without_a_reason_for_its_end(self, way, make, ask):
        body = json.loads(
            json.dumps(whole(way))
            .replace('"stop_reason": "end_turn"', '"stop_reason": null')
            .replace('"finishReason": "STOP", ', "")
            .replace('"finish_reason": "stop"', '"finish_reason": null')
            .replace('"status": "completed"', '"status": "in_progress"')
        )
        async with served(replies(body, Content_Type="application/json")) as root:
            with pytest.raises(BadAnswer) as caught:
                await complete(make(root), way, ask)
        assert caught.value.retryable
        assert caught.value.usage is None or caught.value.usage.total_tokens == 120

    @pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b"[]", b'"x"', b"{}", b'{"id": 1', b"null"])
    async def test_rubbish(self, way, make, ask, body):
        async with served(replies(body, Content_Type="application/json")) as root:
            with pytest.raises(BadAnswer):
                await complete(make(root), way, ask)

    async def test_an_answer_without_end(self, way, make, ask):
        async def endless(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            while True:
                await response.write(b" " * 65536)

        async with served(endless) as root:
            with pytest.raises(AnswerTooLong, match="max_message_bytes"):
                await complete(make(root, max_message_bytes=100_000), way, ask)

    async def test_an_answer_cut_short(self, way, make, ask):
        async def cut(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(json.dumps(whole(way)).encode()[:-20])
            assert request.transport is not None
            request.transport.abort()
            return response

        async with served(cut) as root:
            with pytest.raises(BadAnswer, match="cut short"):
                await complete(make(root), way, ask)

    async def test_a_vendor_that_does_not_answer_in_time(self, way, make, ask):
        gone = asyncio.Event()
        first, rest = replies(whole(way), Content_Type="application/json"), silent(asyncio.Event(), gone)
        answers = iter([first])

        async def handler(request: web.Request) -> web.StreamResponse:
            return await next(answers, rest)(request)  # type: ignore[no-any-return]

        async with served(handler) as root:
            provider = make(root)
            await complete(provider, way, ask)  # loads the SDK, which takes longer than the clock below
            with pytest.raises(ProviderTimeout, match=r"0\.2 s"):
                await complete(provider, way, ask, timeout=0.2)
            await asyncio.wait_for(gone.wait(), 10)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_cancelling_closes_the_connection(self, way, make, ask, stream):
        asked, gone = asyncio.Event(), asyncio.Event()
        async with served(silent(asked, gone)) as root:
            on_delta = (lambda _: None) if stream else None
            call = asyncio.create_task(complete(make(root), way, ask, on_delta=on_delta))
            await asyncio.wait_for(asked.wait(), 30)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.wait_for(gone.wait(), 10)


def silent(asked: asyncio.Event, gone: asyncio.Event) -> Any:
    """A vendor that says nothing; ``gone`` is set when the caller has left."""

    async def handler(_: web.Request) -> web.StreamResponse:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError

    return handler


class TestStreams:
    async def test_a_text(self, way, make, llmock, ask):
        llmock.reply("The capital of France is Paris, as it has been for long.")
        told: list[Delta] = []
        got = await complete(make(llmock.url), way, ask, on_delta=told.append)
        assert got.text == "".join(delta.text for delta in told)
        assert got.text == "The capital of France is Paris, as it has been for long."
        assert (len(told) > 1, got.finish_reason, got.model) == (True, "stop", way.model)
        assert got.usage.total_tokens > 0
        assert llmock.last_request.stream

    async def test_tool_calls(self, way, make, llmock, ask):
        calls = (ToolCall("weather", {"city": "Paris"}), ToolCall("time", {"city": "Rome"}))
        llmock.add(Reply(tool_calls=calls))
        told: list[Delta] = []
        got = await complete(make(llmock.url), way, ask, on_delta=told.append, tools=TOOLS)
        assert got.finish_reason == "tool_calls"
        pieces = [call for delta in told for call in delta.tool_calls]
        for number, call in enumerate(got.message["tool_calls"]):
            mine = [piece for piece in pieces if piece["index"] == number]
            assert (
                "".join(piece["function"].get("arguments", "") for piece in mine)
                == call["function"]["arguments"]
            )
            assert next(piece["id"] for piece in mine if piece.get("id")) == call["id"]
        assert [json.loads(call["function"]["arguments"]) for call in got.message["tool_calls"]] == [
            {"city": "Paris"},
            {"city": "Rome"},
        ]

    @pytest.mark.parametrize("fault", ["truncate", "disconnect", "corrupt"])
    async def test_one_that_breaks_off(self, way, make, llmock, ask, fault):
        llmock.reply("The capital of France is Paris, as it has been for long.", times=None)
        getattr(llmock, fault)(after_chunks=3, times=None)
        with pytest.raises(BadAnswer) as caught:
            await complete(make(llmock.url), way, ask, on_delta=lambda _: None)
        assert caught.value.retryable

    async def test_one_that_is_too_long(self, way, make, llmock, ask):
        llmock.reply("word " * 2000)
        with pytest.raises(AnswerTooLong, match="max_message_bytes"):
            await complete(make(llmock.url, max_message_bytes=4000), way, ask, on_delta=lambda _: None)

    async def test_one_whose_frames_are_longer_than_its_words(self, way, make, llmock, ask):
        llmock.reply("word " * 500)
        got = await complete(make(llmock.url, max_message_bytes=20_000), way, ask, on_delta=lambda _: None)
        assert got.text == ("word " * 500).strip() or got.text == "word " * 500

    async def test_cancelling_one_closes_its_connection(self, way, make, llmock, ask):
        llmock.reply("The capital of France is Paris, as it has been for long.").stall(
            after_chunks=8, seconds=60
        )
        begun = asyncio.Event()
        call = asyncio.create_task(
            complete(make(llmock.url), way, ask, on_delta=lambda _: begun.set(), timeout=60)
        )
        await asyncio.wait_for(begun.wait(), 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        [record] = await asyncio.to_thread(lambda: llmock.requests)  # waits until the vendor has noticed
        assert not record.completed

    async def test_a_listener_that_fails_is_no_fault_of_the_vendor(self, way, make, llmock, ask):
        llmock.reply("The capital of France is Paris.")

        def broken(_: Delta) -> None:
            raise ConnectionError("password authentication failed: too many clients already")

        with pytest.raises(ConnectionError, match="too many clients"):
            await complete(make(llmock.url), way, ask, on_delta=broken)


class TestTheDocs:
    PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")

    def test_what_a_wire_cannot_do_is_our_table(self):
        names = [way.name for way in WAYS]
        rows = [[what, *(gaps.get(name, "yes") for name in names)] for what, gaps in CANNOT.items()]
        lines = [f"| | {' | '.join(names)} |", *(f"| {' | '.join(row)} |" for row in rows)]
        assert [line for line in lines if line not in self.PAGE] == []

    def test_every_vendor_is_told_of(self):
        for name, vendor in catalogue(Settings()).items():
            if vendor.any_llm is not None:
                how = "without the extra | with the extra" if vendor.base_url else "no | yes"
                assert f"| `{name}` | {how} |" in self.PAGE
            else:
                assert f"| `{name}` |" not in self.PAGE

    def test_every_error_of_a_vendor_is_told_of(self):
        ours = (BudgetSpent, InternalFailure)  # nobody was asked
        kinds = {ProviderError, *ProviderError.__subclasses__()} - set(ours)
        told = dict(re.findall(r"^\|[^|]+\| `(\w+)` \| `(\w+)` \|", self.PAGE, re.MULTILINE))
        assert told == {kind.__name__: kind.type for kind in kinds}
