"""Measure streams beside the vendor's own: how long until the first word, how old the others are, and the commits.

python -m benchmarks.streaming [--quick] [--database-url URL] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
from aiohttp import web
from rich.console import Console
from rich.table import Column, Table

from benchmarks.contestants.system import settings_for
from benchmarks.queries import load
from benchmarks.stage.child import child, greet, until_input_ends
from benchmarks.stage.database import MeasuredDatabase, measured_database
from benchmarks.stage.provider_server import MODEL
from pgnexus.app import App
from pgnexus.caller.service import LLMService

_WARM_UP = 20
_ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "stream": True}


@dataclass(slots=True)
class Times:
    """Of each stream the seconds until its first word, and of each word how old it was when it came."""

    first: list[float] = field(default_factory=list)
    first_age: list[float] = field(default_factory=list)
    later_age: list[float] = field(default_factory=list)

    def word(self, asked: float, said: str) -> None:
        """The words of one chunk: each is the moment at which the vendor said it."""
        now = time.monotonic()
        for word in said.split():
            age = now - int(word) / 1e9
            if asked not in self._open:
                self._open.add(asked)
                self.first.append(now - asked)
                self.first_age.append(age)
            else:
                self.later_age.append(age)

    _open: set[float] = field(default_factory=set)

    def figures(self) -> dict[str, float]:
        return {
            f"{name}_p{share}_ms": round(_at(times, share) * 1000, 2)
            for name, times in (
                ("first_word", self.first),
                ("age_of_first", self.first_age),
                ("age_of_later", self.later_age),
            )
            for share in (50, 99)
        }


def _at(times: list[float], share: int) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


Way = Callable[[Times], Awaitable[None]]


@asynccontextmanager
async def vendor(base_url: str) -> AsyncIterator[Way]:
    """The stub asked by plain HTTP."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(times: Times) -> None:
            asked = time.monotonic()
            async with session.post(f"{base_url}/chat/completions", json=_ASK) as answer:
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        delta = json.loads(line[6:])["choices"][0]["delta"]
                        times.word(asked, delta.get("content", ""))

        yield ask


@asynccontextmanager
async def pgnexus(url: str, base_url: str) -> AsyncIterator[Way]:
    """The same through a worker process and the database."""
    async with child("benchmarks.contestants.worker", "nexus", url, base_url):
        app = App(settings_for(url, base_url), nexus=False)
        await app.start()
        try:
            yield _asking(app.service)
        finally:
            await app.stop()


def _asking(service: LLMService) -> Way:
    async def ask(times: Times) -> None:
        asked = time.monotonic()
        stream = service.stream("simple", "Go on.", priority="interactive")
        async for chunk in stream:
            times.word(asked, chunk.text)

    return ask


async def measure(way: Way, calls: int, at_once: int) -> tuple[dict[str, float], float]:
    """The figures of so many streams, so many at once; and the seconds they took."""
    times, numbers = Times(), iter(range(calls))

    async def reader() -> None:
        for _ in numbers:
            await way(times)

    start = time.monotonic()
    await asyncio.gather(*(reader() for _ in range(at_once)))
    return times.figures(), time.monotonic() - start


async def _warm_up(way: Way) -> None:
    await asyncio.gather(*(way(Times()) for _ in range(_WARM_UP)))


async def compare(database: MeasuredDatabase, calls: int, at_once: int) -> dict[str, dict[str, float]]:
    """Both ways against the same stub."""
    async with child("benchmarks.streaming", "--serve") as stub, database.fresh() as url:
        base_url = f"http://127.0.0.1:{stub.greeting}/v1"
        async with vendor(base_url) as way:
            await _warm_up(way)
            bare, _ = await measure(way, calls, at_once)
        async with pgnexus(url, base_url) as way:
            await _warm_up(way)
            async with await psycopg.AsyncConnection.connect(url) as connection:
                await connection.execute(load("forget_streams"))
            through, seconds = await measure(way, calls, at_once)
            async with await psycopg.AsyncConnection.connect(url) as connection:
                row = await (await connection.execute(load("streams"))).fetchone()
        assert row is not None
        streams, chunks, commits, of_streams = row
        if streams != calls:
            raise RuntimeError(f"{streams} of {calls} streams have chunks")
        through |= {
            "commits_a_second_a_stream": round(of_streams / streams / (seconds * at_once / calls), 2),
            "commits_a_second": round(commits / seconds, 1),
            "chunks_a_commit": round(chunks / commits, 1),
        }
        return {"the vendor": bare, "pgnexus": through}


async def run(url: str | None, *, quick: bool) -> dict[str, Any]:
    with measured_database(url) as database:
        return {
            "one at a time": await compare(database, 10 if quick else 40, 1),
            "200 at once": await compare(database, 200 if quick else 600, 200),
        }


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(
        Column("", no_wrap=True), *(f"{case}\n{way}" for case, ways in found.items() for way in ways)
    )
    names = list(dict.fromkeys(name for ways in found.values() for way in ways.values() for name in way))
    for name in names:
        cells = [str(way.get(name, "")) for ways in found.values() for way in ways.values()]
        table.add_row(name, *cells)
    console.print(table)
    for case, ways in found.items():
        more = ways["pgnexus"]["first_word_p50_ms"] - ways["the vendor"]["first_word_p50_ms"]
        console.print(f"{case}: the first word comes {more:.1f} ms (median) after the vendor's own")
    console.print(f"load {statistics.fmean(os.getloadavg()[:1]):.1f} at the end")


async def _serve(words: int, pause: float) -> None:
    """The stub: its first word at once, the others at their pace; each is the moment at which it is said."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(words):
            await response.write(_event({"content": f"{time.monotonic_ns()} "}))
            await asyncio.sleep(pause)
        await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    greet(runner.addresses[0][1])
    await until_input_ends()
    await runner.cleanup()


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer streams")
    parser.add_argument("--database-url", help="a server to use; its user may create databases")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        asyncio.run(_serve(words=60, pause=0.02))
        return
    found = asyncio.run(run(given.database_url, quick=given.quick))
    show(found, Console(stderr=False))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
