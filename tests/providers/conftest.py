"""Vendors to ask: llmock for what a fake of someone else's making can do, a bare server for the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from provider_server import KEY

from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.providers import Provider, build_providers
from pgnexus.settings import Settings

Ask = Callable[..., LLMRequest]
Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[Provider]]
Wire = Callable[..., Provider]


@pytest.fixture
def ask() -> Ask:
    """A request with one message, and whatever else is named."""

    def make(text: str = "Hello", **fields: Any) -> LLMRequest:
        fields.setdefault("messages", [{"role": "user", "content": text}])
        return LLMRequest(request_id=new_request_id(), **fields)

    return make


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """The provider ``openai`` at a base URL, with a key; closed at the end."""
    built: list[Provider] = []

    def make(base_url: str, name: str = "openai", **settings: Any) -> Provider:
        rows = Settings(providers={name: {"base_url": base_url, "needs_key": False}}, **settings)
        providers = build_providers(rows, {"OPENAI_API_KEY": KEY})
        built.extend(providers.values())
        return providers[name]

    yield make
    for provider in built:
        await provider.close()


@pytest.fixture
async def serve(wire: Wire) -> AsyncIterator[Serve]:
    """The provider ``openai`` in front of a handler of our own."""
    runners: list[web.AppRunner] = []

    async def start(
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]], **settings: Any
    ) -> Provider:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/{api:.*}", handler)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return wire(f"http://{host}:{port}/v1", **settings)

    yield start
    for runner in runners:
        await runner.cleanup()
