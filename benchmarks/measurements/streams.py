"""Streamed answers beside the vendor's own: how long until the first word, how old the others are, and the commits."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import psycopg

from benchmarks.contestants.system import System, settings_for
from benchmarks.measurements.measurement import Measurement, Scene, Turn
from benchmarks.queries import load
from benchmarks.report.figures import Figures
from benchmarks.stage.child import child
from benchmarks.stage.provider_server import MODEL
from benchmarks.stage.quantiles import quantiles
from benchmarks.stage.streaming_server import streaming_server
from benchmarks.stage.writers import share_out
from pgnexus.app import App

_WARM_UP = 20
_ROUNDS_AT_ONCE = 3  # streams for each of those at once
_ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "stream": True}
_VENDOR = "the vendor itself"


@dataclass(slots=True)
class Times:
    """Of each stream the seconds until its first word, and of each word how old it was when it came."""

    first: list[float] = field(default_factory=list)
    first_age: list[float] = field(default_factory=list)
    later_age: list[float] = field(default_factory=list)

    def figures(self) -> Figures:
        named = (
            ("first_word", self.first),
            ("age_of_first", self.first_age),
            ("age_of_later", self.later_age),
        )
        return {
            f"{name}_{share}": found
            for name, times in named
            for share, found in quantiles(times, (50, 99)).items()
        }


class Listening:
    """One stream that is listened to."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._asked = time.monotonic()
        self._began = False

    def heard(self, said: str) -> None:
        """The words of one chunk: each is the moment at which the vendor said it."""
        now = time.monotonic()
        for word in said.split():
            age = now - int(word) / 1e9
            if self._began:
                self._times.later_age.append(age)
            else:
                self._began = True
                self._times.first.append(now - self._asked)
                self._times.first_age.append(age)


Way = Callable[[Times], Awaitable[None]]


@asynccontextmanager
async def _vendor(base_url: str) -> AsyncIterator[Way]:
    """The stub asked by plain HTTP."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(times: Times) -> None:
            listening = Listening(times)
            async with session.post(f"{base_url}/chat/completions", json=_ASK) as answer:
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        listening.heard(json.loads(line[6:])["choices"][0]["delta"].get("content", ""))

        yield ask


@asynccontextmanager
async def _pgnexus(url: str, base_url: str) -> AsyncIterator[Way]:
    """The same through a worker process and the database."""
    async with child("benchmarks.contestants.worker", "nexus", url, base_url):
        app = App(settings_for(url, base_url), nexus=False)
        await app.start()

        async def ask(times: Times) -> None:
            listening = Listening(times)
            async for chunk in app.service.stream("simple", "Go on.", priority="interactive"):
                listening.heard(chunk.text)

        try:
            yield ask
        finally:
            await app.stop()


async def _listen(way: Way, calls: int, at_once: int) -> tuple[Figures, float]:
    """The figures of so many streams, so many at once; and the seconds they took."""
    times = Times()

    async def ask(_: int) -> None:
        await way(times)

    start = time.monotonic()
    await share_out(range(calls), at_once, ask)
    return times.figures(), time.monotonic() - start


async def _of_vendor(calls: int, at_once: int) -> Figures:
    async with streaming_server() as base_url, _vendor(base_url) as way:
        await _listen(way, _WARM_UP, _WARM_UP)
        figures, _ = await _listen(way, calls, at_once)
        return figures


async def _of_pgnexus(scene: Scene, calls: int, at_once: int) -> Figures:
    async with streaming_server() as base_url, scene.database.fresh() as url, _pgnexus(url, base_url) as way:
        await _listen(way, _WARM_UP, _WARM_UP)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(load("forget_streams"))
            figures, seconds = await _listen(way, calls, at_once)
            row = await (await connection.execute(load("streams"))).fetchone()
    assert row is not None
    streams, chunks, commits, of_streams = row
    if streams != calls:
        raise RuntimeError(f"{streams} of {calls} streams have chunks")
    return {
        **figures,
        "commits_a_second": commits / seconds,
        "commits_a_second_a_stream": of_streams / streams / (seconds * at_once / calls),
        "chunks_a_commit": chunks / commits,
    }


def _turns(scene: Scene) -> Sequence[Turn]:
    many = scene.plan.streams_at_once
    turns = []
    for name, calls, at_once in (
        ("one at a time", scene.plan.streams, 1),
        (f"{many} at once", many * _ROUNDS_AT_ONCE, many),
    ):

        async def vendor(calls: int = calls, at_once: int = at_once) -> Figures:
            return await _of_vendor(calls, at_once)

        async def through(calls: int = calls, at_once: int = at_once) -> Figures:
            return await _of_pgnexus(scene, calls, at_once)

        turns.append(Turn(f"{_VENDOR}, {name}", vendor))
        turns.append(Turn(f"{System.name}, {name}", through, ("streams", f"{_VENDOR}, {name}")))
    return turns


STREAMS = Measurement(
    "streams", "streamed answers, one word each 20 ms; the ratio is to the vendor itself", _turns
)
