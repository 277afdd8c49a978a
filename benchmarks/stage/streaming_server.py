"""A vendor that says its first word at once and one more at a fixed pace; a word is the moment it was said at."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from benchmarks.stage.child import child, greet, until_input_ends
from benchmarks.stage.provider_server import MODEL

_WORDS, _PAUSE = 60, 0.02


@asynccontextmanager
async def streaming_server() -> AsyncIterator[str]:
    """Its base URL; the server is a process of its own."""
    async with child("benchmarks.stage.streaming_server") as process:
        yield f"http://127.0.0.1:{process.greeting}/v1"


async def _handle(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(_WORDS):
        await response.write(_event({"content": f"{time.monotonic_ns()} "}))
        await asyncio.sleep(_PAUSE)
    await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion.chunk",
        "model": MODEL,
        "choices": [choice],
    }
    if finish:
        chunk["usage"] = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def _serve() -> None:
    runner = web.ServerRunner(web.Server(_handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    greet(runner.addresses[0][1])
    await until_input_ends()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve())
