"""What a vendor of our own making answers, for the cases that no fake of others' making can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from pydantic_core import to_json

KEY = "sk-secret-0123456789abcdef"


def answer(content: Any = "Hello", **over: Any) -> dict[str, Any]:
    """A whole chat completion, with ``over`` laid over its choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    return {"id": "x", "model": "gpt-4o-2024-08-06", "choices": [choice | over], "usage": usage}


def replies(body: Any, status: int = 200, **headers: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that gives one answer; ``body`` is bytes as they are, or JSON."""
    raw = body if isinstance(body, bytes) else to_json(body)

    async def handler(_: web.Request) -> web.Response:
        return web.Response(
            body=raw,
            status=status,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    return handler


@asynccontextmanager
async def served(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The base URL of a vendor that answers every POST with ``handler``, which is cancelled when the caller goes."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/{api:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/v1"
    await runner.cleanup()
