"""Measure the flow engine: its SQL in batches and its Python workers beside pgflow's protocol, in turns.

python -m benchmarks.flow [--quick] [--runs 3] [--case NAME] [--way NAME] [--batch 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.flow import report
from benchmarks.flow.cases import CASES, Case
from benchmarks.flow.measure import measure
from benchmarks.flow.ways import WAYS
from benchmarks.report.figures import Results, summary
from benchmarks.report.machine import machine
from benchmarks.stage.database import MeasuredDatabase, measured_database

_QUICK = 0.25  # the share of the runs that a quick measurement makes
_BATCH = 200


async def measure_all(
    database: MeasuredDatabase,
    cases: Sequence[Case],
    ways: Sequence[str],
    runs: int,
    batch: int,
    console: Console,
) -> Results:
    """Every case in every way, ``runs`` times; the ways take turns, so that a busy moment hits all."""
    results: Results = {}
    for number in range(1, runs + 1):
        console.print(f"run {number} of {runs}", style="bold")
        for case in cases:
            for way in ways:
                found = await measure(database, case, way, batch)
                results.setdefault(case.name, {}).setdefault(way, []).append(found)
                console.print(f"  {case.name}, {way}: {found['steps_per_second']:,.0f} steps/s", style="dim")
    return results


async def bench(given: argparse.Namespace, command: str, console: Console) -> dict[str, Any]:
    """All that was asked for, printed, and what goes into the JSON file."""
    where, runs = machine(), given.runs or (1 if given.quick else 3)
    cases = [CASES[name].shortened(_QUICK if given.quick else 1) for name in given.case or CASES]
    with measured_database(given.database_url) as database:
        async with database.fresh() as probe:
            server = {**await database.settings(), "one_commit_ms": await database.commit_ms(probe)}
        results = await measure_all(database, cases, given.way or list(WAYS), runs, given.batch, console)
    report.show(results, console)
    console.print(command, soft_wrap=True, highlight=False)
    where["load_at_end"] = os.getloadavg()[0]
    console.print(
        f"PostgreSQL {server['server_version']}, fsync {server['fsync']}, one commit"
        f" {server['one_commit_ms']} ms; {where['cores']} cores;"
        f" load {where['load_at_start']:.1f} to {where['load_at_end']:.1f}"
    )
    return {
        "command": command,
        "machine": where,
        "server": server,
        "batch": given.batch,
        "steps": {case.name: case.steps for case in cases},
        "ratios": report.ratios(results),
        "summary": summary(results),
        "runs": results,
    }


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--runs", type=int, help="how often everything is measured: 3")
    parser.add_argument("--quick", action="store_true", help="once, and a quarter of the runs of each case")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--way", action="append", choices=WAYS)
    parser.add_argument(
        "--batch", type=int, default=_BATCH, help=f"tasks a call of the SQL in batches: {_BATCH}"
    )
    parser.add_argument("--database-url", help="a server to use; its user may create databases")
    parser.add_argument("--json", type=Path, help="write everything there")
    given = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.flow", *arguments])
    found = asyncio.run(bench(given, command, Console()))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
