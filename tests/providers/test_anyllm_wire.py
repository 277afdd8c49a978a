"""Calls through any-llm: one request a call whatever the SDK, what is translated here, and what is loaded when."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from provider_server import KEY
from vendor_wires import WAYS, served, whole

from pgnexus.errors import (
    AnswerTooLong,
    AuthenticationFailed,
    BadAnswer,
    BadRequest,
    InvalidSettings,
    NoCandidate,
    ProviderError,
    ProviderUnavailable,
    TooManyRequests,
)
from pgnexus.messages import Usage
from pgnexus.nexus.router import LLMRouter
from pgnexus.providers import build_providers
from pgnexus.providers.anyllm.wire import AnyLLMWire
from pgnexus.providers.catalogue import Vendor, catalogue
from pgnexus.providers.prices import cost
from pgnexus.providers.provider import Delta
from pgnexus.providers.vendors import _installed
from pgnexus.settings import Settings

SDKS = ("openai", "anthropic", "gemini", "cohere", "bedrock", "mistral", "deepseek")


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # a bearer token is sent over TLS alone
        monkeypatch.setenv(name, KEY)
    for name in ("AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def anyllm() -> AsyncIterator[Any]:
    """A vendor by any-llm at a root URL; closed at the end."""
    built: list[Any] = []

    def make(
        name: str, root: str, environ: dict[str, str] | None = None, most: int = 2**22, **row: Any
    ) -> Any:
        place = {"base_url": root, "wire": "any-llm", "needs_key": name != "bedrock"}
        key = "CO_API_KEY" if name == "cohere" else f"{name.upper()}_API_KEY"
        rows = Settings(providers={name: place | row}, max_message_bytes=most)
        built.append(build_providers(rows, {key: KEY} if environ is None else environ)[name])
        return built[-1]

    yield make
    for provider in built:
        await provider.close()


class Counted:
    """A vendor that refuses everything, and counts."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status, self.headers = status, headers
        self.calls = 0

    async def __call__(self, _: web.Request) -> web.Response:
        self.calls += 1
        body = {"error": {"message": f"no, {KEY}", "type": "x"}, "message": f"no, {KEY}"}
        return web.json_response(body, status=self.status, headers=self.headers)


class TestOneRequestACall:
    """Retries are ours and durable, so those inside the SDKs are off."""

    @pytest.mark.parametrize("name", SDKS)
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("status", "error"), [(429, TooManyRequests), (503, ProviderUnavailable), (408, ProviderError)]
    )
    async def test_a_refusal(self, anyllm, ask, name, stream, status, error):
        vendor = Counted(status, **{"Retry-After": "3"})

        async def handler(request: web.Request) -> web.Response:
            return await vendor(request)

        async with served(handler) as root:
            on_delta = (lambda _: None) if stream else None
            with pytest.raises(error) as caught:
                await anyllm(name, root).complete(ask(), "m", timeout=60, on_delta=on_delta)
        assert vendor.calls == 1
        assert (caught.value.status, caught.value.retry_after) == (status, 3)
        assert (
            KEY not in str(caught.value) or name == "bedrock"
        )  # which signs with its key, and does not send it

    @pytest.mark.parametrize("name", SDKS)
    async def test_a_connection_that_breaks(self, anyllm, ask, name):
        calls = 0

        async def handler(request: web.Request) -> web.Response:
            nonlocal calls
            calls += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        async with served(handler) as root:
            with pytest.raises(ProviderUnavailable):
                await anyllm(name, root).complete(ask(), "m", timeout=60)
        assert calls == 1


class TestManyAtOnce:
    @pytest.mark.parametrize("way", [way for way in WAYS if way.wire == "any-llm"], ids=str)
    async def test_each_gets_its_own_answer(self, ask, way):
        async def echo(request: web.Request) -> web.Response:
            number = re.search(r"number \d+\.", await request.text())
            assert number is not None
            return web.json_response(whole(way, number[0]))

        async with served(echo) as root:
            provider = way.provider(root)
            asked = (provider.complete(ask(f"number {n}."), way.model, timeout=60) for n in range(100))
            got = await asyncio.gather(*asked)
            await provider.close()
        assert [one.text for one in got] == [f"number {n}." for n in range(100)]


class TestCohere:
    async def test_an_answer_and_its_stream(self, anyllm, ask, llmock):
        llmock.reply("Paris, for long.", times=2)
        provider = anyllm("cohere", llmock.base_url("cohere"))
        asked = ask(top_p=0.5, stop=["END"], max_tokens=9, seed=3)
        got = await provider.complete(asked, "command-a-03-2025", timeout=60)
        assert (got.text, got.finish_reason, got.usage.total_tokens > 0) == ("Paris, for long.", "stop", True)
        sent = llmock.last_request.body
        assert (sent["p"], sent["stop_sequences"], sent["max_tokens"], sent["seed"]) == (0.5, ["END"], 9, 3)
        told: list[Delta] = []
        got = await provider.complete(ask(), "command-a-03-2025", timeout=60, on_delta=told.append)
        assert "".join(delta.text for delta in told) == got.text == "Paris, for long."

    async def test_a_tool_that_must_be_called(self, anyllm, ask, llmock):
        provider = anyllm("cohere", llmock.base_url("cohere"))
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        choice = {"type": "function", "function": {"name": "f"}}
        with pytest.raises(ProviderError, match="tool_choice") as caught:
            await provider.complete(ask(tools=tools, tool_choice=choice), "command-a", timeout=60)
        assert type(caught.value) is ProviderError  # the next candidate may take it


class TestBedrock:
    async def test_an_answer_comes_as_one_piece(self, anyllm, ask):
        asked: list[Any] = []

        async def handler(request: web.Request) -> web.Response:
            asked.append((request.path, await request.json()))
            message = {"role": "assistant", "content": [{"text": "Paris."}]}
            usage = {
                "inputTokens": 15,
                "cacheReadInputTokens": 80,
                "cacheWriteInputTokens": 5,
                "outputTokens": 20,
                "totalTokens": 120,
            }
            return web.json_response(
                {
                    "output": {"message": message},
                    "stopReason": "end_turn",
                    "usage": usage,
                    "metrics": {"latencyMs": 1},
                }
            )

        told: list[Delta] = []
        async with served(handler) as root:
            provider = anyllm("bedrock", root)
            got = await provider.complete(
                ask(seed=3), "amazon.nova-lite-v1:0", timeout=60, on_delta=told.append
            )
        assert (got.text, got.finish_reason, told) == ("Paris.", "stop", [Delta("Paris.")])
        assert got.usage == Usage(prompt_tokens=100, completion_tokens=20, total_tokens=120, cached_tokens=80)
        price = cost(catalogue(Settings())["bedrock"], "amazon.nova-lite-v1:0", got.usage)
        assert price == (20 * Decimal("0.06") + 80 * Decimal("0.015") + 20 * Decimal("0.24")) / 1_000_000
        [(path, body)] = asked
        assert path == "/model/amazon.nova-lite-v1:0/converse"
        assert body["messages"] == [{"role": "user", "content": [{"text": "Hello"}]}]

    async def test_without_credentials(self, anyllm, ask, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        provider = anyllm("bedrock", "http://127.0.0.1:9", {})
        with pytest.raises(NoCandidate, match="credentials"):
            await provider.complete(ask(), "amazon.nova-lite-v1:0", timeout=60)


class TestWhatGoesOut:
    async def test_what_is_wrong_with_a_call_of_a_tool(self, anyllm, ask, llmock):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[1"}}
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "y"},
        ]
        provider = anyllm("anthropic", llmock.base_url("anthropic"))
        with pytest.raises(BadRequest, match="'f' are no JSON object"):
            await provider.complete(ask(messages=messages), "claude-sonnet-5-5", timeout=60)
        call["function"]["arguments"] = ""
        await provider.complete(ask(messages=messages), "claude-sonnet-5-5", timeout=60)
        assert llmock.last_request.body["messages"][1]["content"][0]["input"] == {}

    async def test_thoughts_go_back_with_their_signature(self, anyllm, ask):
        sent: list[Any] = []
        thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
        use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}

        async def handler(request: web.Request) -> web.Response:
            sent.append(await request.json())
            usage = {"input_tokens": 1, "output_tokens": 1}
            top = {"id": "m", "type": "message", "role": "assistant", "model": "c", "stop_reason": "tool_use"}
            return web.json_response(top | {"content": [thought, use], "usage": usage})

        async with served(handler) as root:
            provider = anyllm("anthropic", root)
            got = await provider.complete(ask(), "claude-sonnet-5-5", timeout=60)
            result = {"role": "tool", "tool_call_id": "t", "content": "1"}
            again = ask(messages=[{"role": "user", "content": "x"}, got.message, result])
            await provider.complete(again, "claude-sonnet-5-5", timeout=60)
        assert sent[1]["messages"][1]["content"] == [thought, use]
        assert (sent[0]["max_tokens"], "metadata" in sent[0]) == (8192, False)

    async def test_the_api_that_any_llm_does_not_speak(self, anyllm, ask, llmock):
        with pytest.raises(ProviderError, match="responses API"):
            await anyllm("openai", llmock.base_url()).complete(
                ask(api_version="responses"), "gpt-4o", timeout=60
            )
        assert not llmock.requests


class TestStreams:
    async def test_an_error_inside_a_stream(self, anyllm, ask):
        events = [
            {
                "type": "message_start",
                "message": {
                    "id": "m",
                    "type": "message",
                    "role": "assistant",
                    "model": "c",
                    "content": [],
                    "stop_reason": None,
                    "usage": {"input_tokens": 9, "output_tokens": 1},
                },
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Par"}},
            {"type": "error", "error": {"type": "overloaded_error", "message": f"busy {KEY}"}},
        ]

        async with served(stream_of(events)) as root:
            told: list[Delta] = []
            with pytest.raises(ProviderUnavailable, match="busy") as caught:
                await anyllm("anthropic", root).complete(ask(), "c", timeout=60, on_delta=told.append)
        assert (told, caught.value.status) == ([Delta("Par")], 529)
        assert KEY not in str(caught.value)

    async def test_one_without_a_reason_for_its_end(self, anyllm, ask):
        chunk = {"candidates": [{"content": {"role": "model", "parts": [{"text": "Par"}]}, "index": 0}]}
        async with served(stream_of([chunk])) as root:
            with pytest.raises(BadAnswer, match="finish_reason"):
                await anyllm("gemini", root).complete(ask(), "g", timeout=60, on_delta=lambda _: None)

    async def test_the_parts_of_a_thought(self, anyllm, ask):
        parts = [{"text": "Hm", "thought": True}, {"text": ".", "thought": True}, {"text": "Paris."}]
        chunks: list[Any] = [
            {"candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}]} for part in parts
        ]
        chunks[-1]["candidates"][0]["finishReason"] = "STOP"
        chunks[-1]["usageMetadata"] = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
        told: list[Delta] = []
        async with served(stream_of(chunks)) as root:
            got = await anyllm("gemini", root).complete(ask(), "g", timeout=60, on_delta=told.append)
        assert told == [Delta(reasoning="Hm"), Delta(reasoning="."), Delta("Paris.")]
        assert (got.text, got.message["reasoning_content"], got.usage.total_tokens) == ("Paris.", "Hm.", 5)

    async def test_what_cannot_be_stored_is_mended(self, anyllm, ask):
        parts = [{"text": "a\x00", "thought": True}, {"text": "b\x00"}]
        chunk = {
            "candidates": [{"content": {"role": "model", "parts": parts}, "index": 0, "finishReason": "STOP"}]
        }
        told: list[Delta] = []
        async with served(stream_of([chunk])) as root:
            got = await anyllm("gemini", root).complete(ask(), "g", timeout=60, on_delta=told.append)
        assert told == [Delta("b\ufffd", "a\ufffd")]
        assert (got.text, got.mended) == ("b\ufffd", True)

    async def test_arguments_without_end(self, anyllm, ask):
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 3000}}
        chunk = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}],
        }
        async with served(stream_of([chunk] * 10)) as root:
            provider = anyllm("openai", root, most=20_000)
            with pytest.raises(AnswerTooLong, match="max_message_bytes"):
                await provider.complete(ask(), "m", timeout=60, on_delta=lambda _: None)


def stream_of(events: list[Any]) -> Any:
    """A vendor that streams these events, and then closes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            await response.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        return response

    return handler


class TestWhatIsLoaded:
    def test_nothing_before_the_first_call(self):
        script = """
import sys
import pgnexus
from pgnexus.providers import build_providers
from pgnexus.settings import Settings
names = ("ANTHROPIC", "GEMINI", "CO", "OPENAI", "MISTRAL")
keys = {f"{name}_API_KEY": "k" for name in names} | {"AWS_BEARER_TOKEN_BEDROCK": "k"}
providers = build_providers(Settings(providers={"mistral": {"wire": "any-llm"}}), keys)
assert {"anthropic", "gemini", "cohere", "bedrock", "mistral"} <= set(providers), set(providers)
foreign = ("any_llm", "anthropic", "openai", "google.genai", "cohere", "boto3", "mistralai", "httpx")
print([name for name in foreign if name in sys.modules])
"""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PGNEXUS")}
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            env=environ,
            cwd=Path(__file__).parents[2],
        )
        assert (done.stdout.strip(), done.stderr) == ("[]", "")

    def test_a_vendor_that_only_any_llm_speaks_to(self, monkeypatch):
        monkeypatch.setattr(sys.modules[Vendor.__module__], "_installed", lambda _: False)
        settings = Settings()
        keys = {"CO_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
        providers = build_providers(settings, keys)
        assert "cohere" not in providers
        assert not isinstance(providers["anthropic"], AnyLLMWire)  # over its OpenAI-compatible API
        reasons = {info.provider: info.reason for info in LLMRouter(settings, providers).available_models()}
        assert "pip install 'pgnexus[any-llm]'" in str(reasons["cohere"])

    def test_modules_that_are_not_there(self):
        _installed.cache_clear()
        assert (_installed("any_llm"), _installed("no_such_module"), _installed("no_such.module")) == (
            True,
            False,
            False,
        )


class TestRows:
    @pytest.mark.parametrize(
        ("name", "row", "wire", "url"),
        [
            ("openai", {}, "openai", ""),
            ("anthropic", {}, "any-llm", "https://api.anthropic.com"),
            ("anthropic", {"wire": "openai"}, "openai", "https://api.anthropic.com"),
            ("anthropic", {"base_url": "http://host/v1"}, "openai", "https://api.anthropic.com"),
            ("anthropic", {"base_url": "http://host/", "wire": "any-llm"}, "any-llm", "http://host"),
            ("mistral", {"wire": "any-llm"}, "any-llm", ""),
            ("bedrock", {"base_url": "http://host"}, "any-llm", "http://host"),
            ("perplexity", {"wire": "any-llm"}, "any-llm", ""),
        ],
    )
    def test_which_wire(self, name, row, wire, url):
        vendor = catalogue(Settings(providers={name: row}))[name]
        assert (vendor.wire, vendor.any_llm_url) == (wire, url)

    def test_a_vendor_of_any_llms(self):
        vendor = catalogue(Settings(providers={"perplexity": {"wire": "any-llm", "models": ["sonar"]}}))[
            "perplexity"
        ]
        assert (vendor.any_llm, vendor.api_key_env, vendor.needs_key) == (
            "perplexity",
            ("PERPLEXITY_API_KEY",),
            True,
        )

    @pytest.mark.parametrize(("name", "wire"), [("cohere", "openai"), ("local", "any-llm")])
    def test_wires_that_are_not_spoken(self, name, wire):
        with pytest.raises(InvalidSettings, match=rf"providers\.{name}\.wire"):
            catalogue(Settings(providers={name: {"wire": wire}}))

    async def test_a_vendor_that_any_llm_does_not_know(self, anyllm, ask):
        provider = anyllm("nonesuch", "http://127.0.0.1:9", {"NONESUCH_API_KEY": "k"})
        with pytest.raises(NoCandidate, match="any-llm knows no 'nonesuch'"):
            await provider.complete(ask(), "m", timeout=60)

    async def test_an_sdk_that_is_not_there(self, anyllm, ask):
        provider = anyllm("watsonx", "http://127.0.0.1:9", {"WATSONX_API_KEY": "k"})
        with pytest.raises(NoCandidate, match=r"pip install 'any-llm-sdk\[watsonx\]'"):
            await provider.complete(ask(), "m", timeout=60)


def test_a_wire_shows_no_key():
    wire = AnyLLMWire(Vendor("ours", ""), KEY, max_bytes=1)
    assert KEY not in repr(wire)
    assert AuthenticationFailed.retryable is False
