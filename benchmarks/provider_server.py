"""A vendor that answers at once, or after a fixed delay: the same 1 kB every time, on OpenAI's wire."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from pydantic_core import to_json

from benchmarks.child import child, greet, until_input_ends
from benchmarks.prompts import prompt

MODEL = "stub-1"


def _answer() -> bytes:
    """A whole chat completion of about 1 kB."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": prompt(0, 760)},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 180, "completion_tokens": 140, "total_tokens": 320}
    whole = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": MODEL}
    return to_json({**whole, "choices": [choice], "usage": usage})


class ProviderServer:
    """Where it is, and how many calls it has answered."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.chat_url = f"{self.base_url}/chat/completions"

    async def calls(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.base_url}/calls") as response:
            return int(await response.text())


@asynccontextmanager
async def provider_server(delay: float = 0.0) -> AsyncIterator[ProviderServer]:
    """The server in a process of its own; ``delay`` is seconds a call takes at least."""
    async with child("benchmarks.provider_server", "--delay", delay) as process:
        yield ProviderServer(int(process.greeting))


async def _serve(delay: float) -> None:
    body, calls = _answer(), 0

    async def handle(request: web.BaseRequest) -> web.Response:
        nonlocal calls
        if request.method == "GET":
            return web.Response(text=str(calls))
        await request.read()
        calls += 1
        if delay:
            await asyncio.sleep(delay)
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
    asyncio.run(_serve(parser.parse_args().delay))
