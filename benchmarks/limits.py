"""What limits and budgets cost that never bind: the same bulk of requests with and without them, in turns.

python -m benchmarks.limits [--runs 3] [--requests 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar

from benchmarks.contestants.system import System, SystemDriver
from benchmarks.measurements.calls import bulk
from benchmarks.stage.child import Child
from benchmarks.stage.database import measured_database
from benchmarks.stage.provider_server import MODEL, provider_server
from benchmarks.stage.server_cpu import ServerCpu, process_seconds

_RATES = '{"requests_per_minute": 1e8, "tokens_per_minute": 1e12, "concurrent_calls": 1000000}'
_MONEY = '{"usd_per_day": 1000000, "usd_per_month": 1000000, "tokens_per_day": 1000000000000}'
_PRICE = '{"input_price": 1, "output_price": 2}'

LIMITS = {"PGNEXUS_LIMITS": f'{{"stub": {_RATES}, "stub/{MODEL}": {_RATES}}}'}
BUDGETS = {
    "PGNEXUS_BUDGETS": f'{{"stub": {_MONEY}}}',
    "PGNEXUS_MODELS": f'{{"stub/{MODEL}": {_PRICE}}}',
}
WAYS: dict[str, dict[str, str]] = {"without": {}, "limits": LIMITS, "limits and budgets": LIMITS | BUDGETS}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Settings for this process and for the worker that it starts."""
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


class Watched(System):
    """pgnexus, and how long its worker and the server compute for a bulk."""

    computed: ClassVar[list[float]] = []

    @asynccontextmanager
    async def bulk(self) -> AsyncIterator[tuple[Child, SystemDriver]]:
        server = ServerCpu(self._url)
        async with super().bulk() as (worker, driver):
            before = _seconds(worker, server)
            yield worker, driver
            self.computed.append(_seconds(worker, server) - before)


def _seconds(worker: Child, server: ServerCpu) -> float:
    return (process_seconds(worker.pid) or 0.0) + (server.seconds() or 0.0)


async def measure(runs: int, requests: int) -> dict[str, list[tuple[float, float]]]:
    """Of each way, run by run: requests a second, and milliseconds that worker and server compute for one."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with measured_database(None) as database:
        async with provider_server() as provider:
            for _ in range(runs):
                for name, values in WAYS.items():
                    with environment(values):
                        figures = await bulk(database, Watched, provider, requests)
                    rate = figures["requests_per_second"]
                    assert rate is not None
                    found[name].append((rate, Watched.computed[-1] * 1000 / requests))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    found = asyncio.run(measure(given.runs, given.requests))
    rate, cost = (statistics.median(figures) for figures in zip(*found["without"], strict=True))
    for name, runs in found.items():
        rates, costs = zip(*runs, strict=True)
        each = ", ".join(f"{one:,.0f}" for one in rates)
        print(
            f"{name:>20}: {statistics.median(rates):7,.0f} requests/s, {statistics.median(rates) / rate:.0%} ({each});"
            f" {statistics.median(costs):.3f} ms computed for each, {statistics.median(costs) / cost:.0%}"
        )


if __name__ == "__main__":
    main()
