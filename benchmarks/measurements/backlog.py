"""Whether much that waits slows what is done: enqueueing and consuming above a backlog of each kind.

In each window requests are enqueued while nobody works, then one worker process works until as many are done. A
backlog that windows eat up is filled again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg

from benchmarks.contestants.system import System, SystemDriver
from benchmarks.measurements.calls import TIMEOUT
from benchmarks.measurements.measurement import Measurement, Scene, Turn
from benchmarks.queries import load
from benchmarks.report.figures import Figures
from benchmarks.stage.environment import environment
from benchmarks.stage.prompts import prompt
from benchmarks.stage.provider_server import ProviderServer
from benchmarks.stage.spending import Spending

_AT_ONCE = 5000  # requests that one statement fills in
_FILLERS = 2  # connections
_CLAIMED = 1000
_SKIPPED = 500  # of a window's first answers: the worker's start is not what is measured
_TEXT = 50_000  # characters that the prompts of a backlog are cut from
_HELD = {"PGNEXUS_LIMITS": '{"held": {"requests_per_minute": 0.01}}'}

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class Backlog:
    """``extra`` goes into each of the requests; ``take`` is what becomes of them then."""

    name: str
    count: int
    extra: str = "{}"
    take: Callable[[Connection, int], Awaitable[None]] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """Whether it is on the lane, so that the windows eat of it."""
        return self.take is None and "delay" not in self.extra


async def _fill(url: str, backlog: Backlog, count: int) -> None:
    text, starts = prompt(0, _TEXT), iter(range(0, count, _AT_ONCE))

    async def filler() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            for start in starts:
                amount = min(_AT_ONCE, count - start)
                params = {"text": text, "extra": backlog.extra, "start": start, "count": amount}
                await connection.execute(load("backlog_fill"), params)

    await asyncio.gather(*(filler() for _ in range(_FILLERS)))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        if backlog.take is not None:
            await backlog.take(connection, count)
        await connection.execute(load("backlog_vacuum"))


async def _claim(connection: Connection, count: int, *, park: bool) -> None:
    """A worker that is alive and never answers has them; or had them, and put them in line."""
    await connection.execute(load("backlog_worker"))
    left = count
    while left > 0:
        cursor = await connection.execute(
            load("backlog_park" if park else "backlog_claim"), {"limit": min(_CLAIMED, left)}
        )
        row = await cursor.fetchone()
        if not row or not row[0]:
            raise RuntimeError(f"{left} of the backlog could not be taken")
        left -= row[0]


async def _measure(scene: Scene, backlog: Backlog) -> Figures:
    window, windows = scene.plan.window, scene.plan.windows
    totals: dict[str, float] = {}
    async with _filled(scene, backlog) as (url, provider, fill_seconds):
        entrant = System(url, provider)
        eaten = 0
        for _ in range(windows):
            if eaten >= scene.plan.small_backlog // 2:
                await _fill(url, backlog if backlog.waits else Backlog("", eaten), eaten)
                eaten = 0
            with environment(backlog.settings):
                found = await _window(scene, entrant, provider, url, window)
            eaten += int(found.pop("done")) - window
            for key, value in found.items():
                totals[key] = totals.get(key, 0.0) + value / windows
    return {
        "requests_per_second": totals.pop("consumed_per_second"),
        **totals,
        "filled_per_second": backlog.count / fill_seconds,
    }


@asynccontextmanager
async def _filled(scene: Scene, backlog: Backlog) -> AsyncIterator[tuple[str, ProviderServer, float]]:
    provider = await scene.vendors.get()
    async with scene.database.fresh() as url:
        start = time.perf_counter()
        await _fill(url, backlog, backlog.count)
        seconds = time.perf_counter() - start
        if not backlog.waits:  # there is always something behind the window
            await _fill(url, Backlog("", scene.plan.small_backlog), scene.plan.small_backlog)
        await scene.database.checkpoint()
        yield url, provider, seconds


async def _window(
    scene: Scene, entrant: System, provider: ProviderServer, url: str, window: int
) -> dict[str, float]:
    async with entrant.driver() as driver:
        enqueueing = await _enqueued(scene, driver, url, window)
        calls, stored, ended = await provider.calls(), await driver.done(), driver.ended
        assert ended is not None
        async with entrant.workers("both", 1) as worker:
            first = await ended.reached(_SKIPPED, TIMEOUT)
            spending = Spending(scene.database, url, worker=worker.pids)
            counted, before = ended.count, await spending.read()
            last = await ended.reached(window, TIMEOUT)
            spent = await spending.figures(before, max(1, ended.count - counted))
            memory = worker.memory()[1]
        # the worker has stopped in good order: what it began is committed
        done = await driver.done() - stored
        if (made := await provider.calls() - calls) != done:
            raise RuntimeError(f"{made} calls were made for {done} answers that are stored")
        numbers = {name: value for name, value in spent.items() if value is not None and "caller" not in name}
        return {
            "consumed_per_second": (window - _SKIPPED) / (last - first),
            **enqueueing,
            **numbers,
            "worker_mb_peak": memory or 0.0,
            "done": done,
        }


async def _enqueued(scene: Scene, driver: SystemDriver, url: str, window: int) -> dict[str, float]:
    spending = Spending(scene.database, url)
    before, start = await spending.read(), time.perf_counter()
    await driver.enqueue_many(range(window))
    seconds = time.perf_counter() - start
    spent = await spending.figures(before, window)
    return {
        "accepted_per_second": window / seconds,
        "enqueue_postgres_cpu_us_per_request": spent["postgres_cpu_us_per_request"] or 0.0,
    }


def _turns(scene: Scene) -> Sequence[Turn]:
    plan = scene.plan
    small = Backlog(f"{plan.small_backlog:,} waiting", plan.small_backlog)
    others = [
        Backlog(f"{plan.backlog:,} waiting", plan.backlog),
        Backlog(f"{plan.beside:,} delayed", plan.beside, '{"delay": 86400}'),
        Backlog(f"{plan.beside:,} in flight", plan.beside, take=partial(_claim, park=False)),
        Backlog(
            f"{plan.beside:,} over their limit", plan.beside, take=partial(_claim, park=True), settings=_HELD
        ),
        Backlog(f"{plan.beside:,} of one agent", plan.beside, '{"agent_id": "eager"}'),
    ]
    least = ("backlog", small.name)
    return [
        Turn(small.name, partial(_measure, scene, small)),
        *(Turn(backlog.name, partial(_measure, scene, backlog), least) for backlog in others),
    ]


BACKLOG = Measurement(
    "backlog", "requests done, and accepted, above much that waits; the ratio is to little", _turns, long=True
)
