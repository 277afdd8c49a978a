"""One contestant in a process of its own: it makes the calls that it is told of, and says how long they took."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.router.contestants import CONTESTANTS, Contestant, calls, varied
from benchmarks.stage.child import greet, standard_input

VARIED = "varied"


async def _speed(contestant: Contestant, start: int, count: int, at_once: int) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    await calls(contestant, range(start, start + count), at_once)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


async def _first(contestant: Contestant, count: int) -> dict[str, Any]:
    return {"times": [await contestant.first(number) for number in range(count)]}


_MEASURES: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {"speed": _speed, "first": _first}


async def work(name: str, base_url: str) -> None:
    told = await standard_input()
    async with (varied if name == VARIED else CONTESTANTS[name])(base_url) as contestant:
        greet("ready")
        while line := await told.readline():
            order = json.loads(line)
            measure = _MEASURES[order.pop("what")]
            greet(json.dumps(await measure(contestant, **order)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*CONTESTANTS, VARIED])
    parser.add_argument("base_url")
    given = parser.parse_args()
    asyncio.run(work(given.name, given.base_url))
