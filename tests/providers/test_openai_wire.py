"""One call to one vendor: what goes out, what comes back, and every way in which it fails."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from provider_server import KEY, answer, replies

from pgnexus.errors import (
    AnswerTooLong,
    AuthenticationFailed,
    BadAnswer,
    BadRequest,
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaSpent,
    TooManyRequests,
)
from pgnexus.messages import Usage

SCHEMA = '{"type":"object","properties":{"zeta":{"type":"string","default":null},"alpha":{"type":"integer"}}}'
TOOLS = f'[{{"type":"function","function":{{"name":"look_up","description":"d","parameters":{SCHEMA}}}}}]'
FORMAT = f'{{"type":"json_schema","json_schema":{{"name":"n","strict":true,"schema":{SCHEMA}}}}}'


class TestAnswers:
    async def test_a_text(self, llmock, wire, ask):
        llmock.reply("Paris.")
        got = await wire(llmock.base_url()).complete(ask(), "gpt-4o", timeout=30)
        assert (got.text, got.finish_reason, got.model, got.mended) == ("Paris.", "stop", "gpt-4o", False)
        assert got.message == {"role": "assistant", "content": "Paris."} | got.message
        assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens > 0

    async def test_tool_calls(self, llmock, wire, ask):
        llmock.call_tool("look_up", {"alpha": 1})
        got = await wire(llmock.base_url()).complete(ask(tools=TOOLS), "gpt-4o", timeout=30)
        assert got.finish_reason == "tool_calls"
        (call,) = got.message["tool_calls"]
        assert call["function"]["name"] == "look_up"
        assert json.loads(call["function"]["arguments"]) == {"alpha": 1}

    async def test_the_responses_api_looks_the_same_to_the_caller(self, llmock, wire, ask):
        llmock.reply("Paris.").call_tool("look_up", {"alpha": 1})
        provider = wire(llmock.base_url())
        text = await provider.complete(ask(), "gpt-5.3-codex", timeout=30)
        assert (text.text, text.finish_reason) == ("Paris.", "stop")
        call = await provider.complete(ask(tools=TOOLS, api_version="responses"), "gpt-4o", timeout=30)
        assert call.finish_reason == "tool_calls"
        assert call.message["tool_calls"][0]["function"]["name"] == "look_up"
        assert call.usage.prompt_tokens > 0
        assert {record.path for record in llmock.requests} == {"/v1/responses"}

    async def test_what_cannot_be_stored_is_mended(self, serve, ask):
        raw = json.dumps(answer("a\x00b \ud800 c")).replace('"index": 0', '"logprobs": NaN')
        raw = raw.replace('"role"', '"score": NaN, "role"')
        got = await (await serve(replies(raw.encode()))).complete(ask(), "gpt-4o", timeout=30)
        assert got.text == "a\ufffdb \ufffd c"
        assert "score" not in got.message
        assert got.mended

    async def test_usage_as_vendors_send_it(self, serve, ask):
        body = answer()
        body["usage"] = {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "total_tokens": 165,  # 60 tokens of thinking that are only in the total
            "prompt_tokens_details": {"cached_tokens": 80},
        }
        got = await (await serve(replies(body))).complete(ask(), "gpt-4o", timeout=30)
        assert got.usage == Usage(prompt_tokens=100, completion_tokens=65, total_tokens=165, cached_tokens=80)

    @pytest.mark.parametrize(
        "usage", [None, [], "x", {"prompt_tokens": "7"}, {"prompt_tokens": -1}, {"total_tokens": 1e300}]
    )
    async def test_usage_that_is_none(self, serve, ask, usage):
        got = await (await serve(replies(answer() | {"usage": usage}))).complete(ask(), "gpt-4o", timeout=30)
        assert got.usage == Usage()

    async def test_usage_of_reasoning_and_caches(self, serve, ask):
        body = answer()
        body["usage"] = {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
            "completion_tokens_details": {"reasoning_tokens": 40},
        }
        got = await (await serve(replies(body))).complete(ask(), "gpt-4o", timeout=30)
        assert got.usage == Usage(
            prompt_tokens=100,
            completion_tokens=50,
            total_tokens=150,
            cached_tokens=60,
            cache_write_tokens=30,
            reasoning_tokens=40,
        )

    async def test_a_part_is_never_more_than_the_whole(self, serve, ask):
        body = answer()
        body["usage"] = {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 1e9},
            "completion_tokens_details": {"reasoning_tokens": 6},
        }
        got = await (await serve(replies(body))).complete(ask(), "gpt-4o", timeout=30)
        assert (got.usage.cached_tokens, got.usage.cache_write_tokens) == (8, 2)
        assert got.usage.reasoning_tokens == 5

    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    async def test_reasoning_has_one_name(self, serve, ask, name):
        message = {"content": "Paris.", name: "France, so", "refusal": None, "annotations": []}
        got = await (await serve(replies(answer(message=message)))).complete(ask(), "gpt-4o", timeout=30)
        assert got.message == {
            "role": "assistant",
            "content": "Paris.",
            "reasoning_content": "France, so",
        }

    async def test_parts_and_tool_calls_of_careless_servers(self, serve, ask):
        message = {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "France"}]},
                {"type": "text", "text": "Par"},
                {"type": "text", "text": "is"},
            ],
            "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": 2}}}],
        }
        got = await (await serve(replies(answer(message=message)))).complete(ask(), "gpt-4o", timeout=30)
        assert (got.text, got.message["content"]) == ("Paris", "Paris")
        assert got.message["reasoning_content"] == "France"
        assert got.message["tool_calls"] == [
            {"function": {"name": "f", "arguments": '{"b":1,"a":2}'}, "id": "call_0", "type": "function"}
        ]


class TestWhatGoesOut:
    async def test_the_order_of_a_schema_survives(self, llmock, wire, ask):
        provider = wire(llmock.base_url())
        request = ask(tools=TOOLS, response_format=FORMAT, metadata={"customer": "secret"}, agent_id="a")
        await provider.complete(request, "gpt-4o", timeout=30)
        body = llmock.last_request.body
        assert json.dumps(body["tools"], separators=(",", ":")) == TOOLS
        assert json.dumps(body["response_format"], separators=(",", ":")) == FORMAT
        assert list(body) == ["model", "messages", "tools", "response_format"]

    async def test_the_order_of_a_schema_survives_the_responses_api(self, llmock, wire, ask):
        request = ask(tools=TOOLS, response_format=FORMAT, max_tokens=7, temperature=0.5, seed=3)
        await wire(llmock.base_url()).complete(request, "gpt-5.3-codex", timeout=30)
        body = llmock.last_request.body
        assert json.dumps(body["tools"][0]["parameters"], separators=(",", ":")) == SCHEMA
        assert json.dumps(body["text"]["format"]["schema"], separators=(",", ":")) == SCHEMA
        assert body["tools"][0]["name"] == "look_up"
        assert body["tools"][0]["strict"] is False
        assert (body["max_output_tokens"], body["temperature"], body["store"]) == (7, 0.5, False)
        assert not {"seed", "messages", "response_format", "metadata"} & body.keys()

    async def test_a_conversation_with_tools_and_images_in_both_forms(self, llmock, wire, ask):
        call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        ]
        provider = wire(llmock.base_url())
        await provider.complete(ask(messages=messages), "gpt-4o", timeout=30)
        assert llmock.last_request.body["messages"] == messages
        await provider.complete(ask(messages=messages), "gpt-5.3-codex", timeout=30)
        assert llmock.last_request.body["input"] == [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                ],
            },
            {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
        ]

    async def test_choices_of_tools_and_of_formats_in_both_forms(self, llmock, wire, ask):
        provider = wire(llmock.base_url())
        choice = {"type": "function", "function": {"name": "look_up"}}
        for tool_choice, flat in (
            ("required", "required"),
            (choice, {"type": "function", "name": "look_up"}),
        ):
            request = ask(
                tools=TOOLS, tool_choice=tool_choice, response_format={"type": "json_object"}, top_p=0.5
            )
            await provider.complete(request, "gpt-4o", timeout=30)
            body = llmock.last_request.body
            assert (body["tool_choice"], body["response_format"]) == (tool_choice, {"type": "json_object"})
            await provider.complete(request, "gpt-5.3-codex", timeout=30)
            body = llmock.last_request.body
            assert (body["tool_choice"], body["text"]) == (flat, {"format": {"type": "json_object"}})
            assert body["top_p"] == 0.5

    async def test_an_answer_goes_back_into_a_conversation(self, llmock, wire, ask):
        """What one answer was, with its reasoning, is a message of the next request in both forms."""
        call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        said = {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.", "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a cat"}]}
        messages = [{"role": "user", "content": "What?"}, said, result]
        provider = wire(llmock.base_url())
        await provider.complete(ask(messages=messages), "gpt-4o", timeout=30)
        assert llmock.last_request.body["messages"] == messages
        await provider.complete(ask(messages=messages), "gpt-5.3-codex", timeout=30)
        assert llmock.last_request.body["input"] == [
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "Wait."},
            {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"},
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [{"type": "input_text", "text": "a cat"}],
            },
        ]

    async def test_files_and_sounds_in_the_responses_form(self, llmock, wire, ask):
        parts = [
            {"type": "text", "text": "Read."},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
            {"type": "image_url", "image_url": "https://host.test/a.png"},
        ]
        request = ask(messages=[{"role": "user", "content": parts}])
        await wire(llmock.base_url()).complete(request, "gpt-5.3-codex", timeout=30)
        assert llmock.last_request.body["input"][0]["content"] == [
            {"type": "input_text", "text": "Read."},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
            {"type": "input_image", "image_url": "https://host.test/a.png"},
        ]

    async def test_names_that_differ_between_vendors(self, llmock, wire, ask):
        request = ask(messages=[{"role": "developer", "content": "Be brief."}], max_tokens=5)
        await wire(llmock.base_url()).complete(request, "gpt-4o", timeout=30)
        await wire(llmock.base_url("groq"), "groq").complete(request, "openai/gpt-oss-20b", timeout=30)
        openai, groq = (record.body for record in llmock.requests)
        assert (openai["max_completion_tokens"], openai["messages"][0]["role"]) == (5, "developer")
        assert (groq["max_tokens"], groq["messages"][0]["role"]) == (5, "system")
        await wire(llmock.base_url("mistral"), "mistral").complete(
            ask(seed=3), "mistral-small-latest", timeout=30
        )
        assert llmock.last_request.body["random_seed"] == 3

    async def test_stop_is_not_dropped_in_silence(self, wire, ask):
        with pytest.raises(ProviderError, match="no stop sequences"):
            await wire("http://127.0.0.1:9/v1").complete(ask(stop="x"), "gpt-5.3-codex", timeout=30)

    async def test_an_api_that_is_not_spoken_is_not_replaced(self, wire, ask):
        with pytest.raises(ProviderError, match="does not speak the chat_completions"):
            await wire("http://127.0.0.1:9/v1").complete(
                ask(api_version="chat_completions"), "gpt-5.3-codex", timeout=30
            )

    async def test_a_large_prompt(self, serve, ask):
        sizes: list[int] = []

        async def handler(request: web.Request) -> web.Response:
            sizes.append(len(await request.read()))
            return web.json_response(answer())

        await (await serve(handler)).complete(ask("x" * 3_000_000), "gpt-4o", timeout=10)
        assert sizes[0] > 3_000_000


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code", "message", "error"),
        [
            (400, None, "bad", BadRequest),
            (400, "context_length_exceeded", "This model's maximum context length is 8", ContextTooLong),
            (400, "exceed_context_size_error", "request (9 tokens) exceeds", ContextTooLong),
            (400, "content_policy_violation", "no", ContentFiltered),
            (400, None, "Your credit balance is too low to access the API", QuotaSpent),
            (400, "model_not_found", "no", ModelNotFound),
            (400, None, "API key not valid. Please pass a valid API key.", AuthenticationFailed),
            (401, "invalid_api_key", f"Incorrect API key provided: {KEY}", AuthenticationFailed),
            (402, None, "pay", QuotaSpent),
            (403, None, "no", AuthenticationFailed),
            (404, None, "no such model", ModelNotFound),
            (408, None, "slow", ProviderTimeout),
            (409, None, "again", ProviderUnavailable),
            (413, None, "large", ContextTooLong),
            (413, "rate_limit_exceeded", "tokens per minute (TPM): Limit 6000", TooManyRequests),
            (418, None, "teapot", ProviderError),
            (422, None, "no", BadRequest),
            (429, "insufficient_quota", "You exceeded your current quota", QuotaSpent),
            (429, None, "slow down", TooManyRequests),
            (500, None, "oops", ProviderUnavailable),
            (503, None, "oops", ProviderUnavailable),
            (529, None, "overloaded", ProviderUnavailable),
        ],
    )
    async def test_statuses_codes_and_words(self, llmock, wire, ask, status, code, message, error):
        llmock.fail(status, code=code, message=message)
        with pytest.raises(ProviderError) as caught:
            await wire(llmock.base_url()).complete(ask(), "gpt-4o", timeout=30)
        assert type(caught.value) is error
        assert caught.value.status == status
        assert f"openai/gpt-4o: HTTP {status}: {message}".replace(KEY, "***") == str(caught.value)

    @pytest.mark.parametrize(
        "body",
        [
            {"error": "the words"},
            {"message": "the words", "object": "error"},
            {"detail": "the words"},
            [{"error": {"code": 400, "message": "the words", "status": "INVALID_ARGUMENT"}}],
            {"error": {"message": {"the words": 1}}},
            b"the words",
            b'"the words"',
        ],
    )
    async def test_the_words_are_found_wherever_they_are(self, serve, ask, body):
        provider = await serve(replies(body, 400))
        with pytest.raises(BadRequest, match="the words"):
            await provider.complete(ask(), "gpt-4o", timeout=30)

    async def test_long_words_are_cut_and_made_storable(self, serve, ask):
        provider = await serve(replies(b'{"error": {"message": "\\u0000' + b"x" * 9000 + b'"}}', 500))
        with pytest.raises(ProviderUnavailable) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert len(str(caught.value)) < 600
        assert "\x00" not in str(caught.value)

    async def test_retry_after_in_seconds_milliseconds_and_as_a_date(self, llmock, serve, wire, ask):
        llmock.rate_limit(retry_after=0.25)
        with pytest.raises(TooManyRequests) as caught:
            await wire(llmock.base_url()).complete(ask(), "gpt-4o", timeout=30)
        assert caught.value.retry_after == 0.25
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
        for value, low, high in (
            ("7", 7, 7),
            ("1.5", 1.5, 1.5),
            ("-3", 0, 0),
            (date, 90, 100),
            ("9e99", 86400, 86400),
        ):
            provider = await serve(replies(b"{}", 429, Retry_After=value))
            with pytest.raises(TooManyRequests) as caught:
                await provider.complete(ask(), "gpt-4o", timeout=30)
            assert caught.value.retry_after is not None
            assert low <= caught.value.retry_after <= high
        for value in ("soon", "nan", "inf", ""):
            provider = await serve(replies(b"{}", 429, Retry_After=value))
            with pytest.raises(TooManyRequests) as caught:
                await provider.complete(ask(), "gpt-4o", timeout=30)
            assert caught.value.retry_after is None

    @pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
    async def test_retry_after_whatever_the_status(self, serve, ask, status):
        provider = await serve(replies(b"{}", status, Retry_After="7"))
        with pytest.raises(ProviderError) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert (caught.value.retry_after, caught.value.retryable) == (7, True)

    async def test_retry_after_in_milliseconds_is_the_more_exact(self, serve, ask):
        provider = await serve(replies(b"{}", 429, Retry_After="1", Retry_After_Ms="250"))
        with pytest.raises(TooManyRequests) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert caught.value.retry_after == 0.25

    async def test_a_date_is_read_by_the_clock_of_the_vendor(self, serve, ask):
        now = datetime(2020, 1, 1, tzinfo=UTC)  # it goes wrong by years
        then = format_datetime(now + timedelta(seconds=30), usegmt=True)
        provider = await serve(replies(b"{}", 503, Date=format_datetime(now, usegmt=True), Retry_After=then))
        with pytest.raises(ProviderUnavailable) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert caught.value.retry_after == 30

    async def test_google_says_it_in_the_body(self, serve, ask):
        details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "41.5s"}]
        provider = await serve(replies([{"error": {"code": 429, "details": details}}], 429))
        with pytest.raises(TooManyRequests) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert caught.value.retry_after == 41.5

    @pytest.mark.parametrize(
        ("words", "wait"),
        [
            ("Rate limit reached for gpt-4o. Please try again in 20ms. Visit", 0.02),
            ("Please try again in 7.66s.", 7.66),
            ("Please try again in 1m26.4s.", 86.4),
            ("Please try again in 2h3m.", 7380),
            ("Please retry in 41.5s.", 41.5),
            ("Please try again in a while.", None),
        ],
    )
    async def test_others_say_it_in_words(self, serve, ask, words, wait):
        provider = await serve(replies({"error": {"code": 429, "message": words}}))
        with pytest.raises(TooManyRequests) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert caught.value.retry_after == wait

    async def test_a_header_goes_before_words(self, serve, ask):
        body = {"error": {"message": "Please try again in 20s."}}
        provider = await serve(replies(body, 429, Retry_After="3"))
        with pytest.raises(TooManyRequests) as caught:
            await provider.complete(ask(), "gpt-4o", timeout=30)
        assert caught.value.retry_after == 3

    async def test_an_error_inside_a_200(self, serve, ask):
        provider = await serve(replies({"error": {"code": 429, "message": "upstream is busy"}}))
        with pytest.raises(TooManyRequests, match="upstream is busy"):
            await provider.complete(ask(), "gpt-4o", timeout=30)

    async def test_a_redirect_is_not_followed_with_the_key(self, serve, ask):
        provider = await serve(replies(b"", 302, Location="http://example.invalid/"))
        with pytest.raises(ProviderError, match="HTTP 302"):
            await provider.complete(ask(), "gpt-4o", timeout=30)


class TestRubbish:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>503</html>",
            b"{",
            b"\xff\xfe",
            b"null",
            b"[]",
            {},
            {"choices": []},
            {"choices": {}},
            {"choices": [{"finish_reason": "stop"}]},
            answer(finish_reason=None),
            answer(finish_reason=""),
            answer(finish_reason="error"),
            answer(message={"tool_calls": {"a": 1}}),
            answer(message={"tool_calls": [{"function": {}}]}),
            b"[" * 100_000,
            b'{"n": ' + b"1" * 10_000 + b"}",
        ],
        ids=lambda body: str(body)[:40],
    )
    async def test_is_a_bad_answer(self, serve, ask, body):
        provider = await serve(replies(body))
        with pytest.raises(BadAnswer):
            await provider.complete(ask(), "gpt-4o", timeout=30)

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ({"status": "completed", "output": []}, BadAnswer),
            ({"status": "in_progress", "output": []}, BadAnswer),
            ({"status": "completed", "output": [1]}, BadAnswer),
            ({"output": []}, BadAnswer),
            (
                {"status": "failed", "output": [], "error": {"code": "server_error", "message": "m"}},
                ProviderUnavailable,
            ),
            (
                {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []},
                ContentFiltered,
            ),
        ],
    )
    async def test_of_the_responses_api(self, serve, ask, body, error):
        provider = await serve(replies(body))
        with pytest.raises(error):
            await provider.complete(ask(), "gpt-5.3-codex", timeout=30)

    async def test_nothing_left_by_the_filter(self, serve, ask):
        provider = await serve(replies(answer(None, finish_reason="content_filter")))
        with pytest.raises(ContentFiltered):
            await provider.complete(ask(), "gpt-4o", timeout=30)

    async def test_an_answer_above_the_limit_is_not_read_to_its_end(self, serve, ask):
        sent = 0

        async def handler(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(400):
                await response.write(b" " * 50_000)
                sent += 50_000
            return response

        provider = await serve(handler, max_message_bytes=100_000)
        with pytest.raises(AnswerTooLong, match="more than 100000 bytes"):
            await provider.complete(ask(), "gpt-4o", timeout=10)
        assert sent < 20_000_000

    async def test_a_body_cut_short(self, serve, ask):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "5000"})
            await response.prepare(request)
            await response.write(b'{"choices": [')
            assert request.transport is not None
            request.transport.close()
            return response

        provider = await serve(handler)
        with pytest.raises(BadAnswer, match="cut short"):
            await provider.complete(ask(), "gpt-4o", timeout=30)


class TestTheNetwork:
    async def test_nobody_there(self, wire, ask):
        with pytest.raises(ProviderUnavailable, match=r"openai/gpt-4o: .*127\.0\.0\.1:9"):
            await wire("http://127.0.0.1:9/v1").complete(ask(), "gpt-4o", timeout=30)

    async def test_no_such_host(self, wire, ask):
        with pytest.raises(ProviderUnavailable):
            await wire("http://nowhere.invalid/v1").complete(ask(), "gpt-4o", timeout=20)

    async def test_a_connection_closed_without_an_answer(self, serve, ask):
        async def handler(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.close()
            return web.Response()

        with pytest.raises(ProviderUnavailable):
            await (await serve(handler)).complete(ask(), "gpt-4o", timeout=30)

    async def test_no_answer_in_time(self, serve, ask):
        async def handler(_: web.Request) -> web.Response:
            await asyncio.Event().wait()
            return web.Response()

        with pytest.raises(ProviderTimeout, match=r"within 0\.1 s"):
            await (await serve(handler)).complete(ask(), "gpt-4o", timeout=0.1)

    async def test_a_cancelled_call_closes_its_connection(self, serve, ask):
        asked, gone = asyncio.Event(), asyncio.Event()

        async def handler(_: web.Request) -> web.Response:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()
            return web.Response()

        call = asyncio.create_task((await serve(handler)).complete(ask(), "gpt-4o", timeout=60))
        await asyncio.wait_for(asked.wait(), 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(gone.wait(), 10)

    async def test_many_at_once(self, llmock, wire, ask):
        provider = wire(llmock.base_url())
        calls = [provider.complete(ask(f"{i}"), "gpt-4o", timeout=60) for i in range(200)]
        assert len(await asyncio.gather(*calls)) == 200


async def test_the_key_is_nowhere_in_what_a_failure_leaves_behind(serve, ask, caplog):
    caplog.set_level(logging.DEBUG)

    async def handler(request: web.Request) -> web.Response:
        seen = request.headers["Authorization"]
        return web.json_response({"error": {"message": f"{seen} is no key"}}, status=401)

    provider = await serve(handler)
    with pytest.raises(AuthenticationFailed) as caught:
        await provider.complete(ask(), "gpt-4o", timeout=30)
    everything = f"{caught.getrepr(style='long', showlocals=False)} {caplog.text} {provider!r}"
    assert "Bearer *** is no key" in everything
    assert KEY not in everything
