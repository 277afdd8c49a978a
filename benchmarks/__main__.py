"""Measure pgnexus beside raw pgmq, in turns, and print what was found.

python -m benchmarks [--quick] [--runs 3] [--database-url URL] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.contestants.floor import Floor
from benchmarks.contestants.system import System
from benchmarks.measurements.calls import alone, bulk, calls_alone
from benchmarks.report.figures import Figures, Results, summary
from benchmarks.report.machine import machine
from benchmarks.report.ratios import ratios, show
from benchmarks.stage.database import MeasuredDatabase, measured_database
from benchmarks.stage.provider_server import provider_server


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    runs: int = 3
    requests: int = 10_000
    calls: int = 500
    slow_requests: int = 1000
    slow_delay: float = 0.2
    only: tuple[str, ...] = ()

    def wants(self, measurement: str) -> bool:
        return not self.only or any(measurement.startswith(name) for name in self.only)


class Bench:
    """One pass over the plan after another; contestants take turns, so that a busy moment hits both."""

    def __init__(self, database: MeasuredDatabase, plan: Plan, console: Console) -> None:
        self._database = database
        self._plan = plan
        self._console = console
        self.results: Results = {}

    async def run(self) -> None:
        for number in range(1, self._plan.runs + 1):
            self._console.print(f"run {number} of {self._plan.runs}", style="bold")
            if self._plan.wants("bulk"):
                await self._bulk()
            if self._plan.wants("slow"):
                await self._slow()
            if self._plan.wants("alone"):
                await self._alone()

    async def _bulk(self) -> None:
        database, requests = self._database, self._plan.requests
        async with provider_server() as provider:
            await self._note("bulk", "the HTTP calls alone", calls_alone(provider, requests, 100))
            await self._note("bulk", "raw pgmq", bulk(database, Floor, provider, requests))
            await self._note("bulk", "pgnexus", bulk(database, System, provider, requests))
            await self._note(
                "bulk", "pgnexus, one by one", bulk(database, System, provider, requests, one_by_one=True)
            )

    async def _slow(self) -> None:
        database, requests = self._database, self._plan.slow_requests
        async with provider_server(self._plan.slow_delay) as provider:
            await self._note("slow", "the HTTP calls alone", calls_alone(provider, requests, requests))
            await self._note("slow", "raw pgmq", bulk(database, Floor, provider, requests))
            await self._note("slow", "pgnexus", bulk(database, System, provider, requests))

    async def _alone(self) -> None:
        database, calls = self._database, self._plan.calls
        async with provider_server() as provider:
            for together, name in ((True, "alone, one process"), (False, "alone, two processes")):
                await self._note(name, "raw pgmq", alone(database, Floor, provider, calls, together=together))
                await self._note(name, "pgnexus", alone(database, System, provider, calls, together=together))

    async def _note(self, measurement: str, contestant: str, figures: Awaitable[Figures]) -> None:
        found = await figures
        self.results.setdefault(measurement, {}).setdefault(contestant, []).append(found)
        key = next(key for key in ("requests_per_second", "p50_ms") if key in found)
        self._console.print(f"  {measurement}, {contestant}: {found[key]:,.1f} {key}", style="dim")


async def measure(url: str | None, plan: Plan, console: Console) -> dict[str, Any]:
    """All runs of the plan: what goes into the JSON file."""
    where = machine()
    with measured_database(url) as database:
        async with database.fresh() as probe:
            server = {**await database.settings(), "one_commit_ms": await database.commit_ms(probe)}
        bench = Bench(database, plan, console)
        await bench.run()
    show(bench.results, console)
    where["load_at_end"] = os.getloadavg()[0]
    console.print(
        f"PostgreSQL {server['server_version']}, fsync {server['fsync']}, one commit {server['one_commit_ms']} ms;"
        f" {where['cores']} cores; load {where['load_at_start']:.1f} to {where['load_at_end']:.1f}"
    )
    return {
        "machine": where,
        "server": server,
        "plan": {name: getattr(plan, name) for name in plan.__slots__},
        "ratios": ratios(bench.results),
        "summary": summary(bench.results),
        "runs": bench.results,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--calls", type=int, help="sequential calls for the latency")
    parser.add_argument("--slow-requests", type=int)
    parser.add_argument("--quick", action="store_true", help="one short run of everything")
    parser.add_argument("--only", action="append", choices=["bulk", "slow", "alone"])
    parser.add_argument("--database-url", help="a server to use; its user may create databases")
    parser.add_argument("--json", type=Path, help="write everything there")
    given = parser.parse_args(arguments)
    amounts: dict[str, Any] = {"runs": 1, "requests": 2000, "calls": 100} if given.quick else {}
    for name in ("runs", "requests", "calls", "slow_requests"):
        if (value := getattr(given, name)) is not None:
            amounts[name] = value
    plan = Plan(only=tuple(given.only or ()), **amounts)
    found = asyncio.run(measure(given.database_url, plan, Console(stderr=False)))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
