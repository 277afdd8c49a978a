"""A vendor on OpenAI's wire that takes its time over a streamed answer, and sees who leaves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.provider_server import served


class StreamingVendor:
    """Says "PROMPT CALL 0 1 2 …", a word at a time; CALL counts the calls with that prompt."""

    def __init__(self, *, words: int, pause: float) -> None:
        self.words = words
        self.pause = pause
        self.base_url = ""
        self.calls: Counter[str] = Counter()
        self.left: list[str] = []  # prompts whose caller closed the connection
        self.breaks: set[int] = set()  # calls of a prompt that break off half-way

    def text(self, prompt: str, call: int) -> str:
        """A whole answer."""
        return " ".join([prompt, str(call), *map(str, range(self.words))])

    async def answer(self, request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["messages"][-1]["content"]
        self.calls[prompt] += 1
        call = self.calls[prompt]
        words = self.text(prompt, call).split(" ")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for place, word in enumerate(words):
                if call in self.breaks and place == len(words) // 2:
                    assert request.transport is not None
                    request.transport.close()
                    return response
                await response.write(_event({"content": word if place == 0 else f" {word}"}))
                await asyncio.sleep(self.pause)
            await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.left.append(prompt)
            raise
        return response


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "x", "object": "chat.completion.chunk", "model": "gpt-4o-mini", "choices": [choice]}
    if finish:
        chunk["usage"] = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@asynccontextmanager
async def streaming_vendor(*, words: int = 60, pause: float = 0.02) -> AsyncIterator[StreamingVendor]:
    """It serves while the block runs."""
    vendor = StreamingVendor(words=words, pause=pause)
    async with served(vendor.answer) as vendor.base_url:
        yield vendor
