"""A vendor that answers at once, or after a fixed delay: the same 1 kB each time, on OpenAI's wire, also streamed."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from pydantic_core import to_json

from benchmarks.stage.child import child, greet, until_input_ends
from benchmarks.stage.prompts import prompt

MODEL = "stub-1"


ANSWER = prompt(0, 760)
_USAGE = {"prompt_tokens": 180, "completion_tokens": 140, "total_tokens": 320}


def _answer(model: str) -> bytes:
    """A whole chat completion of about 1 kB."""
    message = {"role": "assistant", "content": ANSWER}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": model}
    return to_json({**whole, "choices": [choice], "usage": _USAGE})


def _stream(model: str) -> list[bytes]:
    """The same in pieces of some words."""
    step = 40
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": ANSWER[start : start + step]} for start in range(0, len(ANSWER), step)]
    choices: list[list[Any]] = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices += [[{"index": 0, "delta": {}, "finish_reason": "stop"}], []]
    head: dict[str, Any] = {
        "id": "chatcmpl-0",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
    }
    events = [to_json({**head, "choices": choice, "usage": None if choice else _USAGE}) for choice in choices]
    return [b"data: " + event + b"\n\n" for event in (*events, b"[DONE]")]


class ProviderServer:
    """Where it is, and how many calls it has answered."""

    def __init__(self, port: int, pid: int) -> None:
        self.pid = pid
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.chat_url = f"{self.base_url}/chat/completions"

    async def calls(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.base_url}/calls") as response:
            return int(await response.text())


@asynccontextmanager
async def provider_server(delay: float = 0.0, model: str = MODEL) -> AsyncIterator[ProviderServer]:
    """The server in a process of its own; ``delay`` is seconds a call takes at least, ``model`` who it says it is."""
    async with child("benchmarks.stage.provider_server", "--delay", delay, "--model", model) as process:
        yield ProviderServer(int(process.greeting), process.pid)


class Vendors:
    """Servers that stay for a whole run, one for each delay; what they count is read before and after."""

    def __init__(self) -> None:
        self._servers: dict[float, ProviderServer] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Vendors:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def get(self, delay: float = 0.0) -> ProviderServer:
        """The server of that delay, started when it is asked for first."""
        if delay not in self._servers:
            self._servers[delay] = await self._stack.enter_async_context(provider_server(delay))
        return self._servers[delay]


async def _serve(delay: float, model: str) -> None:
    body, pieces, calls = _answer(model), _stream(model), 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        if request.method == "GET":
            return web.Response(text=str(calls))
        asked = await request.read()
        calls += 1
        if delay:
            await asyncio.sleep(delay)
        if b'"stream":true' in asked:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
            return response
        return web.Response(body=body, content_type="application/json")

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    greet(runner.addresses[0][1])
    await until_input_ends()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--model", default=MODEL)
    given = parser.parse_args()
    asyncio.run(_serve(given.delay, given.model))
