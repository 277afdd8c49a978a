"""What it takes to have a request accepted, with nobody there to work at it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import psycopg

from benchmarks.contestants.floor import Floor, FloorDriver
from benchmarks.contestants.system import System, SystemDriver
from benchmarks.measurements.measurement import Measurement, Scene, Turn
from benchmarks.queries import load
from benchmarks.report.figures import Figures
from benchmarks.stage.prompts import prompt
from benchmarks.stage.quantiles import quantiles
from benchmarks.stage.spending import Spending
from benchmarks.stage.writers import share_out

_WARM_UP = 50
_WRITERS = 100

Do = Callable[[Any, Sequence[int]], Awaitable[list[float] | None]]
Joined = Callable[[SystemDriver, str, Sequence[int]], Awaitable[list[float]]]


async def _many(driver: FloorDriver | SystemDriver, numbers: Sequence[int]) -> None:
    await driver.enqueue_many(numbers)


async def _each(driver: FloorDriver | SystemDriver, numbers: Sequence[int]) -> list[float]:
    times: list[float] = []

    async def enqueue(number: int) -> None:
        start = time.perf_counter()
        await driver.enqueue(number)
        times.append(time.perf_counter() - start)

    await share_out(numbers, _WRITERS, enqueue)
    return times


async def _one_after_another(driver: FloorDriver | SystemDriver, numbers: Sequence[int]) -> list[float]:
    return await _timed(numbers, driver.enqueue)


async def _timed(numbers: Sequence[int], do: Callable[[int], Awaitable[object]]) -> list[float]:
    times = []
    for number in numbers:
        start = time.perf_counter()
        await do(number)
        times.append(time.perf_counter() - start)
    return times


async def _in_psycopg(driver: SystemDriver, url: str, numbers: Sequence[int], *, joins: bool) -> list[float]:
    """One row of the application's own and one request in each transaction."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:

        async def order(number: int) -> None:
            async with connection.transaction():
                await connection.execute(load("order_insert"), {"note": prompt(number, 100)})
                if joins:
                    await driver.enqueue(number, connection)

        return await _timed(numbers, order)


async def _in_asyncpg(driver: SystemDriver, url: str, numbers: Sequence[int]) -> list[float]:
    import asyncpg  # noqa: PLC0415 - of the development extra

    connection = await asyncpg.connect(dsn=_dsn(url))
    statement = load("order_insert").replace("%(note)s", "$1")

    async def order(number: int) -> None:
        async with connection.transaction():
            await connection.execute(statement, prompt(number, 100))
            await driver.enqueue(number, connection)

    try:
        return await _timed(numbers, order)
    finally:
        await connection.close()


def _dsn(conninfo: str) -> str:
    """asyncpg reads URLs only."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    query = "&".join(f"{name}={value}" for name, value in parts.items())
    return f"postgresql://?{query.replace('dbname=', 'database=')}"


async def _accept(scene: Scene, kind: type[Floor] | type[System], do: Do, count: int) -> Figures:
    async with _ready(scene, kind) as (driver, url):
        await do(driver, range(_WARM_UP))
        return await _measured(scene, driver, url, lambda numbers: do(driver, numbers), count)


async def _join(scene: Scene, do: Joined, *, accepts: bool = True) -> Figures:
    async with _ready(scene, System) as (driver, url):
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(load("order_setup"))
        await do(driver, url, range(_WARM_UP))
        count = scene.plan.enqueued_alone
        return await _measured(
            scene, driver, url, lambda numbers: do(driver, url, numbers), count, accepts=accepts
        )


@asynccontextmanager
async def _ready(scene: Scene, kind: type[Floor] | type[System]) -> AsyncIterator[tuple[Any, str]]:
    provider = await scene.vendors.get()
    async with scene.database.fresh() as url:
        entrant = kind(url, provider)
        await entrant.prepare()
        async with entrant.driver() as driver:
            yield driver, url


async def _measured(
    scene: Scene,
    driver: FloorDriver | SystemDriver,
    url: str,
    do: Callable[[Sequence[int]], Awaitable[list[float] | None]],
    count: int,
    *,
    accepts: bool = True,
) -> Figures:
    spending = Spending(scene.database, url, caller=driver.pids)
    before, start = await spending.read(), time.perf_counter()
    times = await do(range(_WARM_UP, _WARM_UP + count))
    seconds = time.perf_counter() - start
    spent = await spending.figures(before, count)
    found, wanted = await driver.waiting(), (_WARM_UP + count) if accepts else 0
    if found != wanted:
        raise RuntimeError(f"{found} of {wanted} requests are stored and wait")
    return {"requests_per_second": count / seconds, **(quantiles(times) if times else {}), **spent}


def _turns(scene: Scene) -> Sequence[Turn]:
    plan = scene.plan
    turns = []
    for name, do, count in (
        ("one caller", _one_after_another, plan.enqueued_alone),
        ("100 coroutines", _each, plan.enqueued),
        ("batches", _many, plan.enqueued * 2),
    ):
        for kind in (Floor, System):

            async def run(kind: Any = kind, do: Any = do, count: int = count) -> Figures:
                return await _accept(scene, kind, do, count)

            floor = None if kind is Floor else ("enqueue", f"{Floor.name}, {name}")
            turns.append(Turn(f"{kind.name}, {name}", run, floor))
    return [*turns, *_joins(scene)]


def _joins(scene: Scene) -> Sequence[Turn]:
    """Beside the same transaction without a request, which is what they are compared with."""

    async def bare(driver: SystemDriver, url: str, numbers: Sequence[int]) -> list[float]:
        return await _in_psycopg(driver, url, numbers, joins=False)

    async def joined(driver: SystemDriver, url: str, numbers: Sequence[int]) -> list[float]:
        return await _in_psycopg(driver, url, numbers, joins=True)

    own = "the caller's transaction alone"
    turns = [
        Turn(own, lambda: _join(scene, bare, accepts=False)),
        Turn(f"{System.name}, joined (psycopg)", lambda: _join(scene, joined), ("enqueue", own)),
    ]
    if find_spec("asyncpg") is not None:
        turns.append(
            Turn(f"{System.name}, joined (asyncpg)", lambda: _join(scene, _in_asyncpg), ("enqueue", own))
        )
    return turns


ENQUEUE = Measurement("enqueue", "requests accepted, nobody working at them", _turns)
