"""Streamed answers: the same whole as without a stream, pieces as they come, and every way in which one breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from provider_server import answer, replies
from pydantic_core import to_json

from pgnexus.errors import (
    AnswerTooLong,
    BadAnswer,
    ContentFiltered,
    ContextTooLong,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaSpent,
    TooManyRequests,
)
from pgnexus.messages import Usage
from pgnexus.providers.openai import chat as chat_api
from pgnexus.providers.openai import responses as responses_api
from pgnexus.providers.openai.responses_stream import ResponsesStream
from pgnexus.providers.openai.sse import Event, EventParser
from pgnexus.providers.openai.stream import AnswerStream, ChatStream
from pgnexus.providers.provider import Completion, Delta

COUNTED = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
USAGE = Usage(
    prompt_tokens=20,
    completion_tokens=9,
    total_tokens=29,
    cached_tokens=8,
    cache_write_tokens=4,
    reasoning_tokens=5,
)


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **over: Any) -> dict[str, Any]:
    """One event of a streamed chat completion."""
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": reason}]
    return {"id": "x", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": choices} | over


def call(index: int, piece: str, **head: Any) -> dict[str, Any]:
    function = {"arguments": piece} | ({"name": head.pop("name")} if "name" in head else {})
    return {"tool_calls": [{"index": index, **head, "function": function}]}


def events(*bodies: Any, done: bool = True) -> bytes:
    """The bytes of a stream; ``bodies`` are bytes as they are, or JSON."""
    lines = [body if isinstance(body, bytes) else b"data: " + to_json(body) + b"\n\n" for body in bodies]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


CHAT = events(
    b": keep-alive\n\n",
    chunk({"role": "assistant", "content": "", "refusal": None}),
    chunk({"reasoning_content": "Let me söe"}),
    b"event: message\r\nid: 7\r\ndata: " + to_json(chunk({"content": "Grüße "})) + b"\r\n\r\n",
    b'data: {"choices": [{"delta": {"content":\ndata:  "\xf0\x9f\x90\x98!"}}]}\n\n',
    b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n',
    b'data: {"choices": [{"delta": {"content": "\\ude00 a\\u0000b"}}]}\n\n',
    chunk(call(0, "", id="c1", type="function", name="look_up")),
    chunk(call(0, '{"a":')),
    chunk(call(1, '{"b": 2}', id="c2", type="function", name="look_up")),
    chunk(call(0, " 1}")),
    b": keep-alive\r\r",
    chunk({}, "tool_calls"),
    chunk(choices=[], usage=COUNTED),
)
CHAT_WHOLE = {
    "model": "gpt-4o",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": "Grüße 🐘!😀 a\x00b",
                "refusal": None,
                "annotations": [],
                "reasoning_content": "Let me söe",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "look_up", "arguments": '{"a": 1}'},
                    },
                    {
                        "id": "c2",
                        "type": "function",
                        "function": {"name": "look_up", "arguments": '{"b": 2}'},
                    },
                ],
            },
        }
    ],
    "usage": COUNTED,
}

RESPONSES_WHOLE = {
    "model": "gpt-5.3-codex",
    "status": "completed",
    "error": None,
    "output": [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [
                {"type": "summary_text", "text": "First."},
                {"type": "summary_text", "text": "Then."},
            ],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Grüße 🐘!", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"a": 1}'},
    ],
    "usage": {
        "input_tokens": 20,
        "output_tokens": 9,
        "total_tokens": 29,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 5},
    },
}


def told(kind: str, **fields: Any) -> bytes:
    body = {"type": f"response.{kind}", **fields}
    return f"event: response.{kind}\n".encode() + b"data: " + to_json(body) + b"\n\n"


def responses(last: bytes) -> bytes:
    head = {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": ""}
    return events(
        told("created", response={"status": "in_progress", "output": [], "usage": None}),
        told("reasoning_summary_text.delta", output_index=0, summary_index=0, delta="Fir"),
        told("reasoning_summary_text.delta", output_index=0, summary_index=0, delta="st."),
        told("reasoning_summary_text.delta", output_index=0, summary_index=1, delta="Then."),
        told("output_item.done", output_index=0, item=RESPONSES_WHOLE["output"][0]),  # type: ignore[index]
        told("output_text.delta", output_index=1, content_index=0, delta="Grüße "),
        told("output_text.delta", output_index=1, content_index=0, delta="🐘!"),
        told("output_item.done", output_index=1, item=RESPONSES_WHOLE["output"][1]),  # type: ignore[index]
        told("output_item.added", output_index=2, item=head),
        told("function_call_arguments.delta", output_index=2, delta='{"a":'),
        told("function_call_arguments.delta", output_index=2, delta=" 1}"),
        told("output_item.done", output_index=2, item=RESPONSES_WHOLE["output"][2]),  # type: ignore[index]
        last,
        done=False,
    )


RESPONSES = responses(told("completed", response=RESPONSES_WHOLE))


def refuse(body: Any, raw: bytes) -> ProviderError:
    return ProviderUnavailable(str(body))


def gathered(kind: type[AnswerStream], pieces: list[bytes]) -> tuple[Any, list[Delta]]:
    deltas: list[Delta] = []
    stream = kind("vendor/model", 10_000, deltas.append, refuse)
    for piece in pieces:
        stream.feed(piece)
    return stream.finish(), deltas


def together(deltas: list[Delta]) -> dict[str, Any]:
    """What a reader of the deltas knows in the end."""
    calls: dict[int, dict[str, str]] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        known = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
        known["id"] += piece.get("id", "")
        known["name"] += piece["function"].get("name", "")
        known["arguments"] += piece["function"]["arguments"]
    return {
        "text": "".join(delta.text for delta in deltas),
        "reasoning": "".join(delta.reasoning for delta in deltas),
        "calls": [calls[number] for number in sorted(calls)],
    }


def in_all(completion: Completion) -> dict[str, Any]:
    calls = completion.message.get("tool_calls") or []
    return {
        "text": completion.text or "",
        "reasoning": completion.message.get("reasoning_content", ""),
        "calls": [{"id": one["id"], **one["function"]} for one in calls],
    }


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(raw) + 1) for place in places})
    return [raw[start:end] for start, end in zip([0, *ends], [*ends, len(raw)], strict=True)]


PLACES = st.lists(st.integers(0, 10_000), max_size=40)


class TestTheSameWhole:
    @settings(deadline=None)  # a busy machine is no failure
    @given(PLACES)
    def test_of_a_chat_completion_wherever_it_is_cut(self, places: list[int]) -> None:
        whole, deltas = gathered(ChatStream, cut(CHAT, places))
        streamed = chat_api.completion(whole, "m", "vendor/m")
        assert streamed == chat_api.completion(CHAT_WHOLE, "m", "vendor/m")
        assert (streamed.text, streamed.usage, streamed.mended) == ("Grüße 🐘!😀 a\ufffdb", USAGE, True)
        assert together(deltas) == in_all(streamed)

    @settings(deadline=None)
    @given(PLACES)
    def test_of_the_responses_api_wherever_it_is_cut(self, places: list[int]) -> None:
        whole, deltas = gathered(ResponsesStream, cut(RESPONSES, places))
        streamed = responses_api.completion(whole, "m", "vendor/m")
        assert streamed == responses_api.completion(RESPONSES_WHOLE, "m", "vendor/m")
        assert (streamed.usage, streamed.finish_reason) == (USAGE, "tool_calls")
        assert streamed.message["reasoning_content"] == "First.\n\nThen."
        assert together(deltas) == in_all(streamed)

    def test_byte_by_byte(self) -> None:
        whole, _ = gathered(ChatStream, [CHAT[i : i + 1] for i in range(len(CHAT))])
        assert whole == gathered(ChatStream, [CHAT])[0]

    def test_items_that_the_last_event_leaves_out(self) -> None:
        raw = responses(told("completed", response=RESPONSES_WHOLE | {"output": []}))
        assert gathered(ResponsesStream, [raw])[0] == RESPONSES_WHOLE

    @pytest.mark.parametrize(
        ("pieces", "message"),
        [
            (  # the same words under two names
                [chunk({"reasoning": "a", "reasoning_content": "a"})] * 2 + [chunk({"content": "b"})],
                {"content": "b", "reasoning_content": "aa"},
            ),
            (  # Mistral's thinking
                [
                    chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]}),
                    chunk({"content": [{"type": "text", "text": "b"}]}),
                    chunk({"content": "c"}),
                ],
                {"content": "bc", "reasoning_content": "a"},
            ),
            (  # OpenRouter's details, which go back to the vendor as they are
                [
                    chunk({"reasoning_details": [{"type": "r", "text": "a", "index": 0, "format": "f"}]}),
                    chunk({"reasoning_details": [{"type": "r", "text": "b", "index": 0, "format": "f"}]}),
                    chunk({"reasoning_details": [{"type": "r", "text": "c", "index": 1}], "content": "d"}),
                ],
                {
                    "content": "d",
                    "reasoning_details": [
                        {"type": "r", "text": "ab", "index": 0, "format": "f"},
                        {"type": "r", "text": "c", "index": 1},
                    ],
                },
            ),
            (  # Gemini gave all calls the same index, and signs its thoughts
                [
                    chunk(call(0, "{}", id="c1", name="f", extra_content={"google": {"s": "1"}})),
                    chunk(call(0, "{}", id="c2", name="g")),
                ],
                {
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "extra_content": {"google": {"s": "1"}},
                            "function": {"name": "f", "arguments": "{}"},
                        },
                        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
            ),
            (  # others give none, and repeat what they have said
                [
                    chunk({"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{"}}]}),
                    chunk({"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "}"}}]}),
                ],
                {
                    "content": None,
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
            ),
        ],
    )  # fmt: skip
    def test_of_careless_servers(self, pieces: list[Any], message: dict[str, Any]) -> None:
        whole, deltas = gathered(ChatStream, [events(*pieces, chunk({}, "stop"))])
        streamed = chat_api.completion(whole, "m", "vendor/m")
        assert streamed.message == {"role": "assistant", **message}
        assert together(deltas) == in_all(streamed)

    async def test_through_the_wire(self, llmock, wire, ask):
        for model in ("gpt-4o", "gpt-5.3-codex"):
            provider, deltas = wire(llmock.base_url()), []
            llmock.reply("Paris, of course.").reply("Paris, of course.")
            plain = await provider.complete(ask(), model, timeout=30)
            streamed = await provider.complete(ask(), model, timeout=30, on_delta=deltas.append)
            assert (streamed.text, streamed.usage) == (plain.text, plain.usage)
            assert streamed.finish_reason == plain.finish_reason == "stop"
            assert "".join(delta.text for delta in deltas) == "Paris, of course."
            assert len(deltas) > 1
            assert llmock.last_request.body["stream"] is True

    async def test_counts_are_asked_for_where_that_can_be_done(self, llmock, wire, ask):
        await wire(llmock.base_url()).complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)
        assert llmock.last_request.body["stream_options"] == {"include_usage": True}
        mistral = wire(llmock.base_url("mistral"), "mistral")
        await mistral.complete(ask(), "mistral-small-latest", timeout=30, on_delta=lambda _: None)
        assert llmock.last_request.body["stream"] is True
        assert "stream_options" not in llmock.last_request.body

    async def test_a_vendor_that_does_not_stream(self, serve, ask):
        deltas: list[Delta] = []
        provider = await serve(replies(answer("Hello"), Content_Type="application/json"))
        got = await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=deltas.append)
        assert (got.text, deltas) == ("Hello", [Delta("Hello")])


class TestEvents:
    @pytest.mark.parametrize(
        ("raw", "found"),
        [
            (b"data: a\n\n", [b"a"]),
            (b"data:a\r\rdata:b\r\n\r\n", [b"a", b"b"]),
            (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
            (b"data: a\ndata: b\ndata\n\n", [b"a\nb\n"]),
            (b": comment\n\n\n\nid: 3\nretry: 5\n\ndata:  a\n\n", [b" a"]),
            (b"event: x\n\ndata: a\n\n", [b"a"]),
            (b"data: a\n\ndata: b", [b"a", b"b"]),  # the blank line is missing
            (b"", []),
        ],
    )
    @pytest.mark.parametrize("size", [1, 2, 1000])
    def test_lines_and_fields(self, raw: bytes, found: list[bytes], size: int) -> None:
        parser = EventParser()
        pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
        parsed = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
        assert parsed == [Event(b"", data) for data in found]
        assert parser.held == 0

    def test_what_is_held_is_known(self) -> None:
        parser = EventParser()
        assert parser.feed(b": a comment\ndata: 1234") == []
        assert parser.held == len(b"data: 1234")
        assert parser.feed(b"5\n") == []
        assert parser.held == len(b"data: 12345")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def streams(*pieces: bytes, then: Callable[[web.Request], Awaitable[None]] | None = None) -> Handler:
    """A handler that sends its pieces one by one, then does something else than end."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if then is not None:
            await then(request)
        return response

    return handler


async def hang_up(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.close()


class TestBroken:
    @pytest.mark.parametrize(
        ("error", "raised", "status"),
        [
            ({"code": 429, "message": "busy"}, TooManyRequests, 429),
            ({"code": "529", "message": "busy"}, ProviderUnavailable, 529),
            ({"type": "overloaded_error", "message": "busy"}, ProviderUnavailable, 529),
            ({"code": "rate_limit_exceeded", "message": "busy"}, TooManyRequests, 429),
            ({"code": "insufficient_quota", "message": "pay"}, QuotaSpent, 429),
            ({"code": "context_length_exceeded", "message": "long"}, ContextTooLong, 400),
            ({"type": "server_error", "message": "oops"}, ProviderUnavailable, 502),
            ("oops", ProviderUnavailable, 502),
        ],
    )
    async def test_by_an_error_in_its_middle(self, serve, ask, error, raised, status):
        deltas: list[Delta] = []
        provider = await serve(streams(events(chunk({"content": "Par"}), {"error": error})))
        with pytest.raises(ProviderError) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=deltas.append)
        assert (type(caught.value), caught.value.status) == (raised, status)
        assert [delta.text for delta in deltas] == ["Par"]

    async def test_by_an_event_named_error(self, serve, ask):
        provider = await serve(streams(b'event: error\ndata: {"message": "the words"}\n\n'))
        with pytest.raises(ProviderUnavailable, match="the words"):
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)

    async def test_google_says_in_its_middle_when_to_come_back(self, serve, ask):
        details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "41.5s"}]
        provider = await serve(streams(events({"error": {"code": 429, "details": details}})))
        with pytest.raises(TooManyRequests) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)
        assert caught.value.retry_after == 41.5

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"<html>oops</html>",
            events(done=True),
            events(chunk({"content": "Par"}), done=False),
            events(chunk({"content": "Par"})),
            events(chunk({"content": "Par"}), chunk({}, "error")),
            events(b"data: {\n\n"),
            events(b"data: [1]\n\n"),
            events(b"data: 1\n\n"),
        ],
        ids=lambda raw: str(raw)[:40],
    )
    async def test_before_its_end(self, serve, ask, raw):
        provider = await serve(streams(raw))
        with pytest.raises(BadAnswer):
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)

    @pytest.mark.parametrize(
        ("last", "raised"),
        [
            (b"", BadAnswer),
            (told("completed"), BadAnswer),
            (told("incomplete", response={"status": "incomplete", "output": []}), BadAnswer),
            (
                told("failed", response={"status": "failed", "error": {"code": "rate_limit_exceeded"}}),
                TooManyRequests,
            ),
            (b'event: error\ndata: {"type": "error", "code": "server_error"}\n\n', ProviderUnavailable),
        ],
        ids=lambda last: str(last)[:40],
    )
    async def test_of_the_responses_api(self, serve, ask, last, raised):
        provider = await serve(streams(responses(last)))
        with pytest.raises(raised):
            await provider.complete(ask(), "gpt-5.3-codex", timeout=30, on_delta=lambda _: None)

    async def test_by_the_connection(self, serve, ask):
        provider = await serve(streams(events(chunk({"content": "Par"}), done=False), then=hang_up))
        with pytest.raises(BadAnswer, match="cut short"):
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)

    async def test_a_silent_one_is_past_its_time(self, serve, ask):
        async def forever(_: web.Request) -> None:
            await asyncio.Event().wait()

        deltas: list[Delta] = []
        provider = await serve(streams(events(chunk({"content": "Par"}), done=False), then=forever))
        with pytest.raises(ProviderTimeout, match=r"within 0\.3 s"):
            await provider.complete(ask(), "gpt-4o", timeout=0.3, on_delta=deltas.append)
        assert [delta.text for delta in deltas] == ["Par"]

    async def test_one_above_the_limit_is_not_read_to_its_end(self, serve, ask):
        gone = asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            try:
                while True:
                    await response.write(events(chunk({"content": "x" * 1000}), done=False))
            finally:
                gone.set()

        provider = await serve(handler, max_message_bytes=100_000)
        with pytest.raises(AnswerTooLong, match="more than 100000 bytes"):
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)
        await asyncio.wait_for(gone.wait(), 10)

    @pytest.mark.parametrize(
        "piece",
        [
            b"data: " + b"x" * 12_000,  # an event that never ends
            events(*[chunk({"thing": "x" * 100})] * 120),
            events(*[chunk(call(0, "x" * 1000))] * 12),
            events(*[chunk({"reasoning": "x" * 1000})] * 12),
            events(*[chunk({"content": "ü" * 1000})] * 6),
        ],
        ids=["event", "unknown field", "arguments", "reasoning", "bytes, not letters"],
    )
    def test_whatever_grows_is_limited(self, piece: bytes) -> None:
        with pytest.raises(AnswerTooLong):
            gathered(ChatStream, [piece])

    def test_what_every_event_repeats_is_not_limited(self) -> None:
        assert len(CHAT) * 50 > 10_000
        gathered(ChatStream, [events(*[chunk({"content": "x"})] * 1000, chunk({}, "stop"))])


class TestWhatABrokenOneCost:
    @pytest.mark.parametrize(
        ("raw", "raised"),
        [
            (events(chunk({"content": "Par"}), chunk(choices=[], usage=COUNTED)), BadAnswer),
            (events(chunk({}, "content_filter"), chunk(choices=[], usage=COUNTED)), ContentFiltered),
            (events(chunk({}), {"error": {"message": "oops"}, "usage": COUNTED}), ProviderUnavailable),
            (events(chunk({"content": "x"}, usage=COUNTED), chunk({"content": "x" * 9000})), AnswerTooLong),
            (events(chunk({}), {"choices": [], "x_groq": {"usage": COUNTED}}), BadAnswer),
        ],
    )
    async def test_streamed(self, serve, ask, raw, raised):
        provider = await serve(streams(raw), max_message_bytes=5000)
        with pytest.raises(raised) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)
        assert caught.value.usage == USAGE

    async def test_by_the_connection(self, serve, ask):
        raw = events(chunk({"content": "x"}, usage=COUNTED), done=False)
        provider = await serve(streams(raw, then=hang_up))
        with pytest.raises(BadAnswer) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)
        assert caught.value.usage == USAGE

    @pytest.mark.parametrize(
        ("body", "model", "raised"),
        [
            (answer(finish_reason=None) | {"usage": COUNTED}, "gpt-4o", BadAnswer),
            (answer(None, finish_reason="content_filter") | {"usage": COUNTED}, "gpt-4o", ContentFiltered),
            ({"error": {"message": "oops"}, "usage": COUNTED}, "gpt-4o", ProviderUnavailable),
            (RESPONSES_WHOLE | {"status": "cancelled"}, "gpt-5.3-codex", BadAnswer),
        ],
    )
    async def test_whole(self, serve, ask, body, model, raised):
        with pytest.raises(raised) as caught:
            await (await serve(replies(body))).complete(ask(), model, timeout=30)
        assert caught.value.usage == USAGE

    async def test_what_was_not_counted_is_not_known(self, serve, ask):
        provider = await serve(replies(answer(finish_reason=None) | {"usage": None}))
        with pytest.raises(BadAnswer) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert caught.value.usage is None


class TestLeaving:
    async def test_cancelling_closes_the_connection(self, serve, ask):
        gone, said = asyncio.Event(), asyncio.Event()

        async def forever(_: web.Request) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

        provider = await serve(streams(events(chunk({"content": "Par"}), done=False), then=forever))
        running = asyncio.create_task(
            provider.complete(ask(), "gpt-4o", timeout=60, on_delta=lambda _: said.set())
        )
        await asyncio.wait_for(said.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(gone.wait(), 10)

    @pytest.mark.parametrize("fault", [ValueError, OSError, TimeoutError, KeyError])
    async def test_a_fault_of_the_reader_is_no_fault_of_the_vendor(self, serve, ask, fault):
        gone = asyncio.Event()

        async def forever(_: web.Request) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

        def broken(_: Delta) -> None:
            raise fault("ours")

        provider = await serve(streams(events(chunk({"content": "Par"}), done=False), then=forever))
        with pytest.raises(fault, match="ours"):
            await provider.complete(ask(), "gpt-4o", timeout=60, on_delta=broken)
        await asyncio.wait_for(gone.wait(), 10)

    async def test_the_connection_of_a_whole_stream_is_used_again(self, serve, ask):
        peers = set()

        async def handler(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            peers.add(request.transport.get_extra_info("peername"))
            return await streams(CHAT)(request)

        provider = await serve(handler)
        for _ in range(5):
            await provider.complete(ask(), "gpt-4o", timeout=30, on_delta=lambda _: None)
        assert len(peers) == 1

    async def test_a_vendor_that_does_not_hang_up_after_the_end(self, serve, ask):
        async def forever(_: web.Request) -> None:
            await asyncio.Event().wait()

        provider = await serve(streams(CHAT, then=forever))
        got = await provider.complete(ask(), "gpt-4o", timeout=60, on_delta=lambda _: None)
        assert json.loads(got.message["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
