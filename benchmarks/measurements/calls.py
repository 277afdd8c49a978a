"""What is measured of each contestant; every figure is one dict a run, in units that its keys name."""

from __future__ import annotations

import asyncio
import time

from benchmarks.contestants.contestant import Contestant, Driver, Entrant
from benchmarks.contestants.floor import HEADERS, job
from benchmarks.report.figures import Figures
from benchmarks.stage.child import Child
from benchmarks.stage.database import MeasuredDatabase
from benchmarks.stage.provider_server import ProviderServer
from pgnexus.providers.http import HttpClient

_TIMEOUT = 600.0
_WARM_UP = 200
_WRITERS = 100  # coroutines that enqueue one by one


async def calls_alone(provider: ProviderServer, requests: int, at_once: int) -> Figures:
    """The HTTP calls without any database: what no system here can be faster than."""
    http, numbers = HttpClient(), iter(range(requests))
    session = http.session(calls_alone)

    async def caller() -> None:
        for number in numbers:
            async with session.post(provider.chat_url, data=job(number).encode(), headers=HEADERS) as answer:
                await answer.read()

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(min(at_once, requests))))
    seconds = time.perf_counter() - start
    await http.release(calls_alone)
    return {"seconds": seconds, "requests_per_second": requests / seconds}


async def bulk(
    database: MeasuredDatabase,
    contestant: Contestant,
    provider: ProviderServer,
    requests: int,
    *,
    one_by_one: bool = False,
) -> Figures:
    """Many requests at once: the clock runs from the first enqueue to word of the last committed result."""
    async with database.fresh() as url:
        entrant = contestant(url, provider)
        await entrant.prepare()
        async with entrant.bulk() as (worker, driver):
            warm_up = min(_WARM_UP, requests)
            assert driver.ended is not None
            await driver.enqueue_many(range(warm_up))
            await driver.ended.reached(warm_up, _TIMEOUT)
            numbers = range(warm_up, warm_up + requests)
            answered, before = await provider.calls(), await database.counters()
            resident = worker.memory()[0]
            start = time.perf_counter()
            await _enqueue(driver, numbers, one_by_one)
            accepted = time.perf_counter() - start
            seconds = await driver.ended.reached(warm_up + requests, _TIMEOUT) - start
            spent = (await database.counters()).since(before)
            await _check(driver, warm_up + requests, await provider.calls() - answered, requests)
            return {
                "seconds": seconds,
                "requests_per_second": requests / seconds,
                "accepted_per_second": requests / accepted,
                "writes_per_request": spent.writes / requests,
                "wal_bytes_per_request": spent.wal / requests,
                **_memory(worker, resident),
            }


async def _enqueue(driver: Driver, numbers: range, one_by_one: bool) -> None:
    if one_by_one:
        await driver.enqueue_each(numbers, _WRITERS)
    else:
        await driver.enqueue_many(numbers)


async def _check(driver: Driver, stored: int, calls: int, requests: int) -> None:
    """A figure counts only if every request was answered and stored once."""
    found = await driver.stored()
    if found != stored or calls != requests:
        raise RuntimeError(f"{found} of {stored} results are stored; {calls} calls for {requests} requests")


def _memory(worker: Child, resident: float | None) -> Figures:
    return {"worker_mb_before": resident, "worker_mb_peak": worker.memory()[1]}


async def alone(
    database: MeasuredDatabase,
    contestant: Contestant,
    provider: ProviderServer,
    calls: int,
    *,
    together: bool,
) -> Figures:
    """One call after another on an idle system, the instant answer included."""
    async with database.fresh() as url:
        entrant = contestant(url, provider)
        await entrant.prepare()
        at_rest = await _commits(database, url, entrant, together)
        before_all = await database.commits(url)
        async with entrant.alone(together=together) as driver:
            warm_up = max(1, min(50, calls // 10))
            for number in range(warm_up):
                await driver.call(number)
            before = await database.counters()
            times = sorted([await driver.call(number) for number in range(warm_up, warm_up + calls)])
            spent = (await database.counters()).since(before)
        commits = await database.commits(url) - before_all - at_rest
        return {
            **{f"p{share}_ms": _at(times, share) * 1000 for share in (50, 95, 99)},
            "writes_per_request": spent.writes / calls,
            "commits_per_request": commits / (warm_up + calls),
            "wal_bytes_per_request": spent.wal / calls,
        }


async def _commits(database: MeasuredDatabase, url: str, entrant: Entrant, together: bool) -> int:
    """What starting and stopping commit, without any request."""
    before = await database.commits(url)
    async with entrant.alone(together=together):
        pass
    return await database.commits(url) - before


def _at(ordered: list[float], share: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
