"""How long an answer takes that the vendor gives at once: on an idle system, and at half of what it can do.

At half load requests arrive when they arrive, whatever has become of the earlier ones (Poisson arrivals, drawn
before), and the clock of each runs from the moment it was due: a system that stalls cannot hold up the next question.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence

from benchmarks.contestants.contestant import Contestant, Driver
from benchmarks.contestants.floor import Floor
from benchmarks.contestants.system import System
from benchmarks.measurements.calls import WARM_UP, alone, bulk, check
from benchmarks.measurements.measurement import Measurement, Scene, Turn
from benchmarks.report.figures import Figures
from benchmarks.stage.quantiles import quantiles
from benchmarks.stage.spending import Spending
from benchmarks.stage.writers import share_out


def _alone(scene: Scene) -> Sequence[Turn]:
    def turn(name: str, contestant: Contestant, calls: int, *, together: bool) -> Turn:
        where = "one process" if together else "two processes"

        async def run() -> Figures:
            provider = await scene.vendors.get()
            return await alone(scene.database, contestant, provider, calls, together=together)

        floor = None if name == Floor.name else ("alone", f"{Floor.name}, {where}")
        return Turn(f"{name}, {where}", run, floor)

    calls = scene.plan.calls
    ours = ((Floor.name, Floor), (System.name, System))
    return [
        *(turn(name, kind, calls, together=True) for name, kind in ours),
        *(turn(name, kind, calls, together=False) for name, kind in ours),
        *(turn(name, peer, scene.plan.peer_calls, together=False) for name, peer in scene.peers.items()),
    ]


def _half(scene: Scene) -> Sequence[Turn]:
    def turn(kind: type[Floor] | type[System]) -> Turn:
        async def run() -> Figures:
            return await _at_half(scene, kind, await _half_rate(scene))

        return Turn(kind.name, run, ("half load", Floor.name) if kind is System else None)

    return [turn(Floor), turn(System)]


async def _half_rate(scene: Scene) -> float:
    """Half of what pgnexus did in bulk, by the median so far; if that was not measured, it is now."""
    rounds = scene.results.get("bulk", {}).get(System.name, [])
    rates = [rate for figures in rounds if (rate := figures["requests_per_second"]) is not None]
    if not rates:
        provider = await scene.vendors.get()
        found = await bulk(scene.database, System, provider, scene.plan.requests)
        assert found["requests_per_second"] is not None
        rates = [found["requests_per_second"]]
    return statistics.median(rates) / 2


async def _at_half(scene: Scene, kind: type[Floor] | type[System], rate: float) -> Figures:
    provider = await scene.vendors.get()
    async with scene.database.fresh() as url:
        entrant = kind(url, provider)
        await entrant.prepare()
        async with entrant.alone(together=False) as driver:
            await share_out(range(WARM_UP), WARM_UP // 4, driver.call)
            spending = Spending(scene.database, url, provider=[provider.pid], caller=driver.pids)
            before, answered = await spending.read(), await provider.calls()
            times, seconds = await _open_loop(driver, rate, scene.plan.half_load_seconds)
            spent = await spending.figures(before, len(times))
            calls = await provider.calls() - answered
            await check(driver, WARM_UP + len(times), calls, len(times))
    return {
        **quantiles(times),
        "arrivals_per_second": len(times) / scene.plan.half_load_seconds,
        "requests_per_second": len(times) / seconds,
        **spent,
    }


async def _open_loop(driver: Driver, rate: float, seconds: float) -> tuple[list[float], float]:
    """Of each request the seconds from when it was due until its answer was in hand; and those of all of it."""
    times: list[float] = []
    calls: list[asyncio.Task[None]] = []
    start = time.perf_counter()

    async def call(number: int, due: float) -> None:
        await driver.call(number)
        times.append(time.perf_counter() - start - due)

    for number, due in enumerate(_arrivals(rate, seconds), start=WARM_UP):
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        calls.append(asyncio.create_task(call(number, due)))
    await asyncio.gather(*calls)
    return times, time.perf_counter() - start


def _arrivals(rate: float, seconds: float) -> Iterator[float]:
    """When requests are due; the same for each contestant."""
    dice, due = random.Random(7), 0.0
    while (due := due + dice.expovariate(rate)) < seconds:
        yield due


ALONE = Measurement("alone", "one call after another on an idle system, the instant answer included", _alone)
HALF = Measurement(
    "half load", "calls that arrive at half of pgnexus's rate in bulk, whatever came of others", _half
)
