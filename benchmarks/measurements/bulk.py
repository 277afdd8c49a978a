"""Many requests to a vendor that answers at once: by everybody, by several workers, and with limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.floor import Floor
from benchmarks.contestants.system import System
from benchmarks.measurements.calls import bulk, bulk_of, calls_alone
from benchmarks.measurements.measurement import Measurement, Scene, Turn
from benchmarks.report.figures import Figures
from benchmarks.stage.environment import environment
from benchmarks.stage.provider_server import MODEL

_CALLS_AT_ONCE = 100
_FLOOR = ("bulk", Floor.name)

_RATES = '{"requests_per_minute": 1e8, "tokens_per_minute": 1e12, "concurrent_calls": 1000000}'
_MONEY = '{"usd_per_day": 1000000, "usd_per_month": 1000000, "tokens_per_day": 1000000000000}'
_PRICE = '{"input_price": 1, "output_price": 2}'
_LIMITS = {"PGNEXUS_LIMITS": f'{{"stub": {_RATES}, "stub/{MODEL}": {_RATES}}}'}
_BUDGETS = {
    "PGNEXUS_BUDGETS": f'{{"stub": {_MONEY}}}',
    "PGNEXUS_MODELS": f'{{"stub/{MODEL}": {_PRICE}}}',
}


def _turns(scene: Scene) -> Sequence[Turn]:
    requests = scene.plan.requests

    async def calls() -> Figures:
        provider = await scene.vendors.get()
        return await calls_alone(provider, requests, _CALLS_AT_ONCE)

    def turn(name: str, contestant: Contestant, amount: int, *, one_by_one: bool = False) -> Turn:
        async def run() -> Figures:
            provider = await scene.vendors.get()
            return await bulk(scene.database, contestant, provider, amount, one_by_one=one_by_one)

        label = f"{name}, one by one" if one_by_one else name
        return Turn(label, run, None if label == Floor.name else _FLOOR)

    return [
        Turn("the HTTP calls alone", calls, _FLOOR),
        turn(Floor.name, Floor, requests),
        turn(System.name, System, requests),
        *(turn(name, peer, scene.plan.peer_requests) for name, peer in scene.peers.items()),
        turn(Floor.name, Floor, requests, one_by_one=True),
        turn(System.name, System, requests, one_by_one=True),
    ]


def _workers(scene: Scene) -> Sequence[Turn]:
    def turn(kind: type[Floor] | type[System], count: int) -> Turn:
        async def run() -> Figures:
            provider = await scene.vendors.get()
            async with scene.database.fresh() as url:
                entrant = kind(url, provider)
                await entrant.prepare()
                return await bulk_of(scene.database, url, entrant.bulk(count), provider, scene.plan.requests)

        floor = ("workers", f"{Floor.name}, {count} workers")
        return Turn(f"{kind.name}, {count} workers", run, floor if kind is System else None)

    return [turn(kind, count) for count in scene.plan.workers for kind in (Floor, System)]


def _limits(scene: Scene) -> Sequence[Turn]:
    def turn(name: str, values: Mapping[str, str]) -> Turn:
        async def run() -> Figures:
            with environment(values):
                provider = await scene.vendors.get()
                return await bulk(scene.database, System, provider, scene.plan.requests)

        return Turn(f"{System.name}, {name}", run, ("limits", f"{System.name}, without") if values else None)

    return [turn("without", {}), turn("limits", _LIMITS), turn("limits and budgets", _LIMITS | _BUDGETS)]


BULK = Measurement("bulk", "many requests of 1 kB in and out, one worker process", _turns)
WORKERS = Measurement("workers", "the same with more worker processes", _workers)
LIMITS = Measurement("limits", "the same with limits that never bind; the ratio is to none", _limits)
