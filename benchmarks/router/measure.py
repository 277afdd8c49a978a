"""What is measured: speed, the first words of a stream, and memory; each contestant in a new process each time."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.report.figures import Figures
from benchmarks.router.worker import VARIED
from benchmarks.stage.child import Child, child
from benchmarks.stage.provider_server import ProviderServer

_WARM_UP = 300
STEPS = (1000, 10_000, 50_000, 100_000)


async def _told(worker: Child, **order: Any) -> dict[str, Any]:
    worker.tell(json.dumps(order))
    found: dict[str, Any] = json.loads(await worker.hear())
    return found


async def speed(server: ProviderServer, name: str, count: int, at_once: int) -> Figures:
    """Calls a second, and the time of this process's processor that one takes."""
    async with child("benchmarks.router.worker", name, server.base_url) as worker:
        await _told(worker, what="speed", start=0, count=min(_WARM_UP, count), at_once=at_once)
        before = await server.calls()
        found = await _told(worker, what="speed", start=0, count=count, at_once=at_once)
        if (made := await server.calls() - before) != count:
            raise RuntimeError(f"{name}: the server saw {made} calls of {count}")
    return {
        "calls_per_second": count / found["seconds"],
        "cpu_us_per_call": found["cpu_seconds"] / count * 1e6,
    }


async def first(server: ProviderServer, name: str, count: int) -> Figures:
    """Milliseconds to the first words of a stream, one call after another."""
    async with child("benchmarks.router.worker", name, server.base_url) as worker:
        await _told(worker, what="first", count=max(1, count // 10))
        times = sorted((await _told(worker, what="first", count=count))["times"])
    return {f"p{share}_ms": times[len(times) * share // 100] * 1000 for share in (50, 95)}


async def memory(server: ProviderServer, steps: tuple[int, ...], at_once: int) -> Figures:
    """The router's resident memory in MB after so many calls, none of which is like another."""
    found: Figures = {}
    async with child("benchmarks.router.worker", VARIED, server.base_url) as worker:
        done = 0
        for step in steps:
            await _told(worker, what="speed", start=done, count=step - done, at_once=at_once)
            done = step
            found[f"rss_mb_after_{step}"] = worker.memory()[0]
    return found
