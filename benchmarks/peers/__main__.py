"""Measure public peers alone, each in its own environment, and print what was found.

python -m benchmarks.peers [--only pgqueuer] [--runs 1] [--quick] [--database-url URL] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
from collections.abc import Awaitable
from pathlib import Path

from rich.console import Console

from benchmarks.measurements.calls import alone, bulk
from benchmarks.peers.entrant import contestant
from benchmarks.peers.environments import PeerMissing, environment
from benchmarks.peers.rows import PEERS, Peer
from benchmarks.report.figures import Figures, Results, summary
from benchmarks.report.machine import machine
from benchmarks.report.tables import show_tables
from benchmarks.stage.database import MeasuredDatabase, measured_database
from benchmarks.stage.provider_server import provider_server

_SLOW = 0.2  # seconds
_AMOUNTS = {"runs": 3, "requests": 5000, "calls": 200, "slow_requests": 1000}
_QUICK = {"runs": 1, "requests": 1000, "calls": 50}


async def ready(peers: list[Peer], console: Console) -> list[Peer]:
    """Those that could be installed; of the others it is said why they are left out."""
    found = []
    for peer in peers:
        try:
            await environment(peer)
        except PeerMissing as missing:
            console.print(f"{peer.name} is left out: {missing}", style="yellow", markup=False)
        else:
            found.append(peer)
    return found


async def measure(
    database: MeasuredDatabase, peers: list[Peer], amounts: argparse.Namespace, console: Console
) -> Results:
    """Every measurement of every peer, in turns."""
    results: Results = {}

    async def note(measurement: str, name: str, figures: Awaitable[Figures]) -> None:
        try:
            found = await figures
        except (RuntimeError, OSError, TimeoutError) as error:
            console.print(f"  {measurement}, {name}: no figure: {error}", style="red", markup=False)
            return
        results.setdefault(measurement, {}).setdefault(name, []).append(found)
        key = next(key for key in ("requests_per_second", "p50_ms") if key in found)
        console.print(f"  {measurement}, {name}: {found[key]:,.1f} {key}", style="dim")

    for number in range(1, amounts.runs + 1):
        console.print(f"run {number} of {amounts.runs}", style="bold")
        async with provider_server() as provider:
            for peer in peers:
                many = bulk(database, contestant(peer), provider, amounts.requests)
                await note("bulk", peer.name, many)
                each = bulk(database, contestant(peer), provider, amounts.requests, one_by_one=True)
                await note("bulk", f"{peer.name}, one by one", each)
                one = alone(database, contestant(peer), provider, amounts.calls, together=False)
                await note("alone, two processes", peer.name, one)
        async with provider_server(_SLOW) as provider:
            for peer in peers:
                await note(
                    "slow", peer.name, bulk(database, contestant(peer), provider, amounts.slow_requests)
                )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=[peer.name for peer in PEERS])
    for name, amount in _AMOUNTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"instead of {amount:,}")
    parser.add_argument("--quick", action="store_true", help="one short run of everything")
    parser.add_argument("--database-url", help="a server to use; its user may create databases")
    parser.add_argument("--json", type=Path, help="write everything there")
    given = parser.parse_args()
    for name, amount in (_AMOUNTS | _QUICK if given.quick else _AMOUNTS).items():
        if getattr(given, name) is None:
            setattr(given, name, amount)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # a thousand calls at once are as many open files
    console = Console()
    with measured_database(given.database_url) as database:
        results = asyncio.run(_run(database, given, console))
    show_tables(results, console)
    if given.json is not None:
        found = {"machine": machine(), "summary": summary(results), "runs": results}
        given.json.write_text(json.dumps(found, indent=2) + "\n")


async def _run(database: MeasuredDatabase, given: argparse.Namespace, console: Console) -> Results:
    peers = await ready([peer for peer in PEERS if not given.only or peer.name in given.only], console)
    return await measure(database, peers, given, console)


if __name__ == "__main__":
    main()
