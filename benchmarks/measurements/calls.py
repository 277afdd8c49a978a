"""Calls through a whole contestant: many at once, and one after another."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager

from benchmarks.contestants.contestant import Contestant, Driver, Entrant, Worker
from benchmarks.contestants.floor import job
from benchmarks.contestants.floor_worker import HEADERS
from benchmarks.report.figures import Figures
from benchmarks.stage.database import MeasuredDatabase
from benchmarks.stage.provider_server import ProviderServer
from benchmarks.stage.quantiles import quantiles
from benchmarks.stage.spending import Spending
from benchmarks.stage.writers import share_out
from pgnexus.providers.http import HttpClient

TIMEOUT = 600.0
WARM_UP = 200
_WRITERS = 100  # coroutines that enqueue one by one


async def calls_alone(provider: ProviderServer, requests: int, at_once: int) -> Figures:
    """The HTTP calls without any database: what no system here can be faster than."""
    http = HttpClient()
    session = http.session(calls_alone)

    async def call(number: int) -> None:
        async with session.post(provider.chat_url, data=job(number).encode(), headers=HEADERS) as answer:
            await answer.read()

    start = time.perf_counter()
    try:
        await share_out(range(requests), min(at_once, requests), call)
        seconds = time.perf_counter() - start
    finally:
        await http.release(calls_alone)
    return {"requests_per_second": requests / seconds, "seconds": seconds}


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
        return await bulk_of(database, url, entrant.bulk(), provider, requests, one_by_one=one_by_one)


async def bulk_of(
    database: MeasuredDatabase,
    url: str,
    at_work: AbstractAsyncContextManager[tuple[Worker, Driver]],
    provider: ProviderServer,
    requests: int,
    *,
    one_by_one: bool = False,
) -> Figures:
    """The same by workers and a driver of one's choice."""
    async with at_work as (worker, driver):
        warm_up = min(WARM_UP, requests)
        assert driver.ended is not None
        await driver.enqueue_many(range(warm_up))
        await driver.ended.reached(warm_up, TIMEOUT)
        numbers = range(warm_up, warm_up + requests)
        spending = Spending(database, url, worker=worker.pids, provider=[provider.pid], caller=driver.pids)
        answered, before = await provider.calls(), await spending.read()
        resident = worker.memory()[0]
        start = time.perf_counter()
        if one_by_one:
            await driver.enqueue_each(numbers, _WRITERS)
        else:
            await driver.enqueue_many(numbers)
        accepted = time.perf_counter() - start
        seconds = await driver.ended.reached(warm_up + requests, TIMEOUT) - start
        spent = await spending.figures(before, requests)
        await check(driver, warm_up + requests, await provider.calls() - answered, requests)
        return {
            "requests_per_second": requests / seconds,
            "seconds": seconds,
            "accepted_per_second": requests / accepted,
            **spent,
            "worker_mb_before": resident,
            "worker_mb_peak": worker.memory()[1],
        }


async def check(driver: Driver, stored: int, calls: int, requests: int) -> None:
    """A figure counts only if every request was answered and stored once."""
    found = await driver.stored()
    if found != stored or calls != requests:
        raise RuntimeError(f"{found} of {stored} results are stored; {calls} calls for {requests} requests")


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
        answered = await provider.calls()
        async with entrant.alone(together=together) as driver:
            warm_up = max(1, min(50, calls // 10))
            for number in range(warm_up):
                await driver.call(number)
            before = await database.counters()
            times = [await driver.call(number) for number in range(warm_up, warm_up + calls)]
            spent = (await database.counters()).since(before)
            await check(driver, warm_up + calls, await provider.calls() - answered, warm_up + calls)
        commits = await database.commits(url) - before_all - at_rest
        return {
            **quantiles(times),
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
