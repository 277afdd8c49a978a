"""Calls that take their time, all at once in one worker process: what waiting costs, and its memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.floor import Floor
from benchmarks.contestants.system import System
from benchmarks.measurements.calls import bulk, calls_alone
from benchmarks.measurements.measurement import Measurement, Scene, Turn
from benchmarks.report.figures import Figures

_CALLS_AT_ONCE = 4000  # connections that nobody paces; more at once than the kernel's backlog take seconds


def _slow(scene: Scene, name: str, requests: int, peers: bool) -> Sequence[Turn]:
    delay = scene.plan.slow_delay
    at_once = max(requests, 1000)

    async def calls() -> Figures:
        provider = await scene.vendors.get(delay)
        return await calls_alone(provider, requests, min(requests, _CALLS_AT_ONCE))

    def turn(contestant: str, make: Contestant) -> Turn:
        async def run() -> Figures:
            provider = await scene.vendors.get(delay)
            return await bulk(scene.database, make, provider, requests)

        return Turn(contestant, run, None if contestant == Floor.name else (name, Floor.name))

    return [
        Turn("the HTTP calls alone", calls, (name, Floor.name)),
        turn(Floor.name, partial(Floor, concurrency=at_once)),
        turn(System.name, partial(System, concurrency=at_once)),
        *(turn(peer, make) for peer, make in scene.peers.items() if peers),
    ]


def _some(scene: Scene) -> Sequence[Turn]:
    return _slow(scene, SLOW.name, scene.plan.slow_requests, peers=True)


def _many(scene: Scene) -> Sequence[Turn]:
    return _slow(scene, SLOWEST.name, scene.plan.most_slow_requests, peers=False)


SLOW = Measurement("slow", "1,000 calls of 200 ms at once in one worker process", _some)
SLOWEST = Measurement("slow, many", "10,000 calls of 200 ms at once in one worker process", _many)
