"""A vendor that keeps its own account of every call, and misbehaves by a seeded die.

Its base URL names who calls (``/v1/WORKER/VENDOR``), and each prompt begins with a mark (``[MARK]``): so the account
can be laid beside the books.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.provider_server import answer, served

# How often each thing happens, in a hundred calls; what is left is a whole answer at once.
_ODDS = {
    "rate_limited": 6,
    "failing": 5,
    "overloaded": 4,
    "truncated": 4,
    "broken": 4,
    "rubbish": 4,
    "slow": 8,
    "never": 2,
}
_UNAUTHORIZED = 4  # of the second vendor alone
_REFUSALS = {"rate_limited": 429, "failing": 500, "overloaded": 529, "unauthorized": 401}


@dataclass
class VendorCall:
    """One call as the vendor saw it; times are those of time.monotonic()."""

    number: int
    worker: str
    vendor: str
    model: str
    mark: str
    began: float
    prompt_tokens: int
    completion_tokens: int
    what: str = ""
    ended: float | None = None
    whole: bool = False  # the answer went out to its last byte
    told: bool = False  # its usage went out, too
    left: bool = False  # the caller closed the connection
    wait: int = 0  # seconds that it was told to wait

    @property
    def text(self) -> str:
        return f"answer {self.number} to {self.mark}: " + "word " * 12 + "end"


class LedgerVendor:
    """Two vendors, alpha and beta, of three models."""

    def __init__(self, seed: int, most_tokens: int) -> None:
        self.calls: list[VendorCall] = []
        self.base_url = ""
        self.healthy = False
        self._most_tokens = most_tokens
        self._random = random.Random(seed)

    def url(self, worker: str, vendor: str) -> str:
        return f"{self.base_url}/{worker}/{vendor}"

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        worker, vendor = request.match_info["api"].split("/")[:2]
        prompt: str = body["messages"][-1]["content"]
        call = VendorCall(
            len(self.calls),
            worker,
            vendor,
            body["model"],
            prompt[1 : prompt.index("]")],
            time.monotonic(),
            self._random.randint(1, 9),
            self._random.randint(1, self._most_tokens),
        )
        self.calls.append(call)
        call.what = self._drawn(vendor)
        try:
            return await self._answer(request, call, bool(body.get("stream")))
        except (asyncio.CancelledError, ConnectionError):
            call.left = True
            raise
        finally:
            if call.ended is None:
                call.ended = time.monotonic()

    def _drawn(self, vendor: str) -> str:
        die = self._random.uniform(0, 100)
        if self.healthy:
            return "whole"
        for what, odds in [*_ODDS.items(), ("unauthorized", _UNAUTHORIZED if vendor == "beta" else 0)]:
            die -= odds
            if die < 0:
                return what
        return "whole"

    async def _answer(self, request: web.Request, call: VendorCall, stream: bool) -> web.StreamResponse:
        await asyncio.sleep(self._random.uniform(0.01, 0.15))
        if call.what == "never":
            await asyncio.sleep(3600)
        if call.what == "slow":
            await asyncio.sleep(self._random.uniform(0.3, 1.2))
        if status := _REFUSALS.get(call.what):
            call.wait = self._random.choice([0, 1, 3]) if status == 429 else 0
            headers = {"Retry-After": str(call.wait)} if status == 429 else {}
            call.ended = time.monotonic()
            return web.json_response({"error": {"message": "not now"}}, status=status, headers=headers)
        if stream:
            return await self._stream(request, call)
        return await self._at_once(request, call)

    async def _at_once(self, request: web.Request, call: VendorCall) -> web.StreamResponse:
        call.ended = time.monotonic()
        if call.what == "rubbish":
            return web.Response(body=b"<html>\x00 nobody is at home")
        whole = call.what != "truncated"
        said = answer(call.text if whole else call.text[:9], finish_reason="stop" if whole else None)
        raw = json.dumps(said | {"model": call.model, "usage": _usage(call)}).encode()
        if call.what == "broken":
            response = web.StreamResponse(headers={"Content-Length": str(len(raw))})
            await response.prepare(request)
            await response.write(raw[: len(raw) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        call.whole, call.told = whole, True
        return web.Response(body=raw, content_type="application/json")

    async def _stream(self, request: web.Request, call: VendorCall) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = call.text.split(" ")
        for place, piece in enumerate(pieces):
            if place == len(pieces) // 2 and call.what in ("broken", "rubbish", "truncated"):
                return await self._break_off(request, response, call)
            await response.write(_event(call, {"content": piece if place == 0 else f" {piece}"}))
            await asyncio.sleep(0.02)
        call.ended = time.monotonic()
        call.whole = call.told = True
        await response.write(_event(call, {}, "stop") + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _break_off(
        self, request: web.Request, response: web.StreamResponse, call: VendorCall
    ) -> web.StreamResponse:
        call.ended = time.monotonic()
        if call.what == "broken":
            assert request.transport is not None
            request.transport.close()
        elif call.what == "rubbish":
            await response.write(b"data: {nobody\n\n")
        else:
            await response.write_eof()
        return response


def _usage(call: VendorCall) -> dict[str, int]:
    prompt, completion = call.prompt_tokens, call.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _event(call: VendorCall, delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion.chunk",
        "model": call.model,
        "choices": [choice],
    }
    if finish:
        chunk["usage"] = _usage(call)
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@asynccontextmanager
async def ledger_vendor(seed: int, most_tokens: int) -> AsyncIterator[LedgerVendor]:
    """It serves while the block runs."""
    vendor = LedgerVendor(seed, most_tokens)
    async with served(vendor.complete) as vendor.base_url:
        yield vendor
