"""The provider, a program of its own: two vendors that misbehave by the seed, and an account of every call.

``python -m chaos.provider --port P --account FILE --seed N``. Its base URL names who calls (``/v1/WORKER/VENDOR``), and
each prompt begins with a mark (``[MARK]``), so that the account can be laid beside the books. What becomes of a call is
drawn from the seed, the mark and which of its calls it is. ``POST /heal`` makes it well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

MOST_TOKENS = 40
HUGE = 20 * 1024 * 1024  # bytes of an answer that nobody should send

# How often each thing happens, in a thousand calls; what is left is a whole answer at once.
_ODDS = {
    "rate_limited": 60,
    "failing": 50,
    "overloaded": 40,
    "truncated": 40,
    "broken": 40,
    "rubbish": 40,
    "slow": 80,
    "never": 20,
    "huge": 3,
}
_UNAUTHORIZED = 40  # of the second vendor alone
_REFUSALS = {"rate_limited": 429, "failing": 500, "overloaded": 529, "unauthorized": 401}


class Account:
    """The file of all calls, one JSON line when a call begins and one when it ends; it outlives this process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def note(self, **line: Any) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")


class Call:
    """One call as the provider sees it; times are those of time.monotonic(), one clock for all processes here."""

    def __init__(self, number: str, worker: str, vendor: str, body: dict[str, Any], seed: str) -> None:
        prompt: str = body["messages"][-1]["content"]
        self.number = number
        self.worker = worker
        self.vendor = vendor
        self.model: str = body["model"]
        self.mark = prompt[1 : prompt.index("]")]
        self.stream = bool(body.get("stream"))
        self.die = random.Random(seed)
        self.prompt_tokens = self.die.randint(1, 9)
        self.completion_tokens = self.die.randint(1, MOST_TOKENS)
        self.ended: float | None = None
        self.whole = self.told = self.left = False
        self.wait = 0
        self.what = "whole"

    @property
    def text(self) -> str:
        return text_of(self.number, self.mark)

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def draw(self) -> None:
        """What becomes of it."""
        die = self.die.uniform(0, 1000)
        for what, odds in [*_ODDS.items(), ("unauthorized", _UNAUTHORIZED * (self.vendor == "beta"))]:
            die -= odds
            if die < 0:
                self.what = what
                return


def text_of(number: str, mark: str) -> str:
    """The whole answer of a call."""
    return f"answer {number} to {mark}: " + "word " * 12 + "end"


class Provider:
    """Two vendors, alpha and beta, of three models."""

    def __init__(self, seed: str, account: Account, *, healthy: bool) -> None:
        self._seed = seed
        self._account = account
        self._healthy = healthy
        self._calls = 0
        self._of_mark: Counter[str] = Counter()

    async def heal(self, _: web.Request) -> web.Response:
        self._healthy = True
        return web.Response()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        worker, vendor = request.match_info["api"].split("/")[:2]
        self._calls += 1
        call = Call(f"{os.getpid()}.{self._calls}", worker, vendor, body, "")
        self._of_mark[call.mark] += 1
        call = Call(call.number, worker, vendor, body, f"{self._seed} {call.mark} {self._of_mark[call.mark]}")
        if not self._healthy:
            call.draw()
        self._account.note(
            call=call.number, worker=worker, vendor=vendor, model=call.model, mark=call.mark, what=call.what,
            prompt_tokens=call.prompt_tokens, completion_tokens=call.completion_tokens, began=time.monotonic(),
        )  # fmt: skip
        try:
            return await self._answer(request, call)
        except (asyncio.CancelledError, ConnectionError):
            call.left = True
            raise
        finally:
            ended = call.ended or time.monotonic()
            told = {"whole": call.whole, "told": call.told, "left": call.left, "wait": call.wait}
            self._account.note(call=call.number, ended=ended, **told)

    async def _answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        await asyncio.sleep(call.die.uniform(0.01, 0.15))
        if call.what == "never":
            await asyncio.sleep(3600)
        if call.what == "slow":
            await asyncio.sleep(call.die.uniform(0.3, 1.2))
        if status := _REFUSALS.get(call.what):
            call.wait = call.die.choice([0, 1, 3]) if status == 429 else 0
            headers = {"Retry-After": str(call.wait)} if status == 429 else {}
            call.ended = time.monotonic()
            return web.json_response({"error": {"message": "not now"}}, status=status, headers=headers)
        if call.stream and call.what != "huge":
            return await _stream(request, call)
        return await _at_once(request, call)


async def _at_once(request: web.Request, call: Call) -> web.StreamResponse:
    call.ended = time.monotonic()
    if call.what == "rubbish":
        return web.Response(body=b"<html>\x00 nobody is at home")
    text = "x" * HUGE if call.what == "huge" else call.text[:9] if call.what == "truncated" else call.text
    finish = None if call.what == "truncated" else "stop"
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    whole = {"id": "x", "model": call.model, "choices": [choice], "usage": call.usage}
    raw = json.dumps(whole).encode()
    if call.what == "broken":
        response = web.StreamResponse(headers={"Content-Length": str(len(raw))})
        await response.prepare(request)
        await response.write(raw[: len(raw) // 2])
        assert request.transport is not None
        request.transport.close()
        return response
    call.whole = call.told = call.what not in ("truncated", "huge")
    return web.Response(body=raw, content_type="application/json")


async def _stream(request: web.Request, call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    pieces = call.text.split(" ")
    for place, piece in enumerate(pieces):
        if place == len(pieces) // 2 and call.what in ("broken", "rubbish", "truncated"):
            return await _break_off(request, response, call)
        await response.write(_event(call, {"content": piece if place == 0 else f" {piece}"}))
        await asyncio.sleep(0.02)
    call.ended = time.monotonic()
    call.whole = call.told = True
    await response.write(_event(call, {}, "stop") + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _break_off(request: web.Request, response: web.StreamResponse, call: Call) -> web.StreamResponse:
    call.ended = time.monotonic()
    if call.what == "broken":
        assert request.transport is not None
        request.transport.close()
    elif call.what == "rubbish":
        await response.write(b"data: {nobody\n\n")
    else:
        await response.write_eof()
    return response


def _event(call: Call, delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "model": call.model}
    chunk["choices"] = [choice]
    if finish:
        chunk["usage"] = call.usage
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def _serve(given: argparse.Namespace) -> None:
    provider = Provider(given.seed, Account(given.account), healthy=given.healthy)
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/{api:.*}", provider.complete)
    app.router.add_post("/heal", provider.heal)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", given.port, backlog=4096).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--account", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--healthy", action="store_true", help="misbehave never")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
