"""Measure pgnexus beside raw pgmq and public peers, in turns, and write what was found: a table, JSON, and plots.

python -m benchmarks [--quick] [--only bulk] [--runs 5] [--resume] [--out build/bench]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.contestants.contestant import Contestant
from benchmarks.measurements.measurement import Scene
from benchmarks.peers.entrant import contestant
from benchmarks.peers.environments import PeerMissing, environment
from benchmarks.peers.rows import PEERS
from benchmarks.plan import QUICK, Plan
from benchmarks.report.machine import machine
from benchmarks.report.markdown import markdown
from benchmarks.report.plots import plots
from benchmarks.report.ratios import ratios
from benchmarks.report.store import Store
from benchmarks.report.tables import show_rows
from benchmarks.run import MEASUREMENTS, Run
from benchmarks.stage.database import measured_database
from benchmarks.stage.provider_server import Vendors

_WIDTH = 150  # of tables that go into a file
_AMOUNTS = (
    "runs",
    "long_runs",
    "requests",
    "calls",
    "slow_requests",
    "most_slow_requests",
    "backlog",
    "beside",
)


async def measure(given: argparse.Namespace, plan: Plan, store: Store, console: Console) -> None:
    """All rounds of the plan, into the store."""
    wanted = [one for one in MEASUREMENTS if not given.only or one.name in given.only]
    if not given.resume:
        store.forget([one.name for one in wanted])
    began, load = time.strftime("%Y-%m-%d %H:%M:%S"), os.getloadavg()[0]
    peers = await _peers(console) if plan.peers else {}
    with measured_database(given.database_url, given.pg_bin) as database:
        async with database.fresh() as probe:
            server = {**await database.settings(), "one_commit_ms": await database.commit_ms(probe)}
        store.about = {"machine": machine(), "server": server, "plan": asdict(plan), "began": began}
        try:
            async with Vendors() as vendors:
                scene = Scene(database, plan, vendors, peers, store.results, store.samples)
                await Run(scene, store, wanted, console).go()
        finally:
            store.about["load"] = f"{load:.1f} before, {os.getloadavg()[0]:.1f} at the end"
            store.about["ended"] = time.strftime("%Y-%m-%d %H:%M:%S")
            store.save()


async def _peers(console: Console) -> dict[str, Contestant]:
    """Those that can be installed; of the others it is said why they are left out."""
    found: dict[str, Contestant] = {}
    for peer in PEERS:
        try:
            await environment(peer)
        except PeerMissing as missing:
            console.print(f"{peer.name} is left out: {missing}", style="yellow", markup=False)
        else:
            found[peer.name] = contestant(peer)
    return found


def main(arguments: list[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    amounts: dict[str, Any] = {
        name: value for name in _AMOUNTS if (value := getattr(given, name)) is not None
    }
    plan = replace(QUICK if given.quick else Plan(), peers=not given.no_peers, **amounts)
    path = given.json or given.out / "bench.json"
    store = Store.read(path) if given.resume or given.only else Store(path)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    _allow_many_connections()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and children are stopped
    asyncio.run(measure(given, plan, store, console))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = plots(store, path.parent)
    page = path.with_suffix(".md")
    page.write_text(markdown(store, pictures))
    show_rows(store.results, ratios(store.results, store.floors), console)
    console.print(f"written: {page}, {path}, {len(pictures)} plots; {len(store.faults)} without a figure")
    if store.faults:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=[one.name for one in MEASUREMENTS])
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run was cut off")
    parser.add_argument("--no-peers", action="store_true", help="leave public peers out")
    for name in _AMOUNTS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, help=f"instead of {getattr(Plan(), name):,}"
        )
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="where bench.md and bench.json go"
    )
    parser.add_argument(
        "--json", type=Path, help="the JSON file, instead of one there; the rest goes beside it"
    )
    parser.add_argument("--database-url", help="a server to use; its user may create databases")
    parser.add_argument("--pg-bin", type=Path, help="programs of another PostgreSQL than the embedded one")
    return parser


def _allow_many_connections() -> None:
    """Ten thousand calls at once are as many open files; what we start has the same limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main(sys.argv[1:])
