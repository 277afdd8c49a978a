"""The same request over every wire that pgnexus speaks: where each is asked, and what it cannot do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from provider_server import KEY

from pgnexus.messages import ApiVersion
from pgnexus.providers import Provider, build_providers
from pgnexus.settings import Settings


@dataclass(frozen=True)
class Way:
    """A wire, and the vendor it is tried with."""

    name: str
    vendor: str
    wire: str
    model: str
    api: ApiVersion | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def variable(self) -> str:
        return f"{self.vendor.upper()}_API_KEY"

    def url(self, root: str) -> str:
        """The base URL at a server that plays all vendors under their llmock paths."""
        return root + {"openai": "/v1", "anthropic": "/anthropic", "gemini": "/gemini"}[self.vendor]

    def provider(self, root: str, **settings: Any) -> Provider:
        row = {"base_url": self.url(root), "wire": self.wire} | settings.pop("row", {})
        rows = Settings(providers={self.vendor: row}, **settings)
        return build_providers(rows, {self.variable: KEY})[self.vendor]


WAYS = (
    Way("openai chat", "openai", "openai", "gpt-4o"),
    Way("openai responses", "openai", "openai", "gpt-4o", "responses"),
    Way("any-llm openai", "openai", "any-llm", "gpt-4o"),
    Way("any-llm anthropic", "anthropic", "any-llm", "claude-sonnet-5-5"),
    Way("any-llm gemini", "gemini", "any-llm", "gemini-3.8-flash"),
)

CANNOT: dict[str, dict[str, str]] = {
    "stop sequences": {"openai responses": "refused: the API has none"},
    "seed": {
        "openai responses": "left out: the API has none",
        "any-llm anthropic": "left out: the API has none",
    },
    "JSON without a schema": {"any-llm anthropic": "refused: the API has none"},
    "tokens of reasoning": {"any-llm anthropic": "not counted apart: they are among those of the answer"},
    "tokens written to a cache": {"any-llm gemini": "not counted: its caches are made by calls of their own"},
}
"""What a wire cannot do, and what becomes of a request that asks for it. docs/providers.md has the same table."""


@asynccontextmanager
async def served(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The root URL of a server that answers every POST with ``handler``."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def whole(way: Way, text: str | None = "Paris.", *, thought: str | None = None) -> dict[str, Any]:
    """A whole answer in the form of a way's vendor: 100 tokens in, 80 of them cached, 20 out."""
    if way.vendor == "anthropic":
        blocks = [{"type": "text", "text": text}] if text is not None else []
        if thought:
            blocks.insert(0, {"type": "thinking", "thinking": thought, "signature": "c2ln"})
        usage = {
            "input_tokens": 15,
            "cache_read_input_tokens": 80,
            "cache_creation_input_tokens": 5,
            "output_tokens": 20,
        }
        top = {"id": "m", "type": "message", "role": "assistant", "model": way.model, "stop_sequence": None}
        return top | {"content": blocks, "stop_reason": "end_turn", "usage": usage}
    if way.vendor == "gemini":
        parts: list[dict[str, Any]] = [{"text": text}] if text is not None else []
        if thought:
            parts.insert(0, {"text": thought, "thought": True})
        usage = {
            "promptTokenCount": 100,
            "cachedContentTokenCount": 80,
            "candidatesTokenCount": 13,
            "thoughtsTokenCount": 7,
            "totalTokenCount": 120,
        }
        candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": way.model}
    if way.api == "responses":
        usage = {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 7},
            "total_tokens": 120,
        }
        item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
        output = (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": thought}]}] if thought else []
        )
        return {
            "id": "r",
            "status": "completed",
            "model": way.model,
            "output": [*output, item],
            "usage": usage,
        }
    usage = {
        "prompt_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5},
        "completion_tokens": 20,
        "completion_tokens_details": {"reasoning_tokens": 7},
        "total_tokens": 120,
    }
    message = {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    top = {"id": "c", "object": "chat.completion", "created": 1, "model": way.model}
    return top | {"choices": [choice], "usage": usage}
