"""What pruning costs those who work beside it: one load, with and without `pgnexus prune` at the same time, in turns.

python -m benchmarks.retention [--runs 3] [--old 300000] [--requests 10000] [--json found.json]

A third of the old results lie in months that go as a whole, the rest of them in one that is not all old. The load
is enqueued one by one by 50 coroutines, as fast as it is taken, and answered by one worker. In the third way
somebody holds a transaction open that has read job_results, so that no month can be dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from benchmarks.contestants.system import System, SystemDriver
from benchmarks.queries import load
from benchmarks.stage.database import MeasuredDatabase, measured_database
from benchmarks.stage.prompts import prompt
from benchmarks.stage.provider_server import ProviderServer, provider_server
from benchmarks.stage.quantiles import quantiles
from benchmarks.stage.writers import share_out

_WAYS = ("without", "pruning", "pruning, a transaction open beside it")
_WRITERS = 50
_PORTION = 20_000
_LOOK = 0.02  # seconds between looks at who waits for a lock
_KEEP = 30  # days
_TIMEOUT = 600.0

Figures = dict[str, float]


class Pruning:
    """The command itself, in a process of its own; waits until it has ended."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.figures: Figures = {}

    async def run(self) -> None:
        start = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pgnexus", "prune", "--older-than", f"{_KEEP}d", "--only", "results", "--json",
            env={**os.environ, "PGNEXUS_DATABASE_URL": self._url}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        seconds = time.perf_counter() - start
        gone = json.loads(out)["pruned"]
        whole = sum(one["rows"] for one in gone if one["what"].startswith("job_results_"))
        rows = sum(one["rows"] for one in gone) - whole
        self.figures = {"prune_seconds": seconds, "rows_one_by_one": rows, "rows_in_months": whole}


async def fill(url: str, old: int) -> None:
    """Results of three months and of the time just over the limit, and runs that ended."""
    months, text = [_KEEP + 65, _KEEP + 2, _KEEP + 3], prompt(0, 150_000)
    async with _connected(url) as connection:
        await connection.execute(load("retention_partitions"))
        for first in range(0, old, _PORTION):
            params = {"first": first, "count": min(_PORTION, old - first), "ages": months, "text": text}
            await connection.execute(load("retention_fill"), params)
        await connection.execute("vacuum analyze")


async def turn(
    database: MeasuredDatabase, provider: ProviderServer, way: str, old: int, requests: int
) -> Figures:
    """One way, once."""
    async with database.fresh() as url, _connected(url) as watching, _connected(url) as holding:
        await fill(url, old)
        await database.checkpoint()
        before = await _sizes(watching)
        pruning, waits = Pruning(url), Waits(url)
        async with System(url, provider).bulk() as (_, driver), waits:
            await driver.enqueue_many(range(200))
            assert driver.ended is not None
            await driver.ended.reached(200, _TIMEOUT)
            if "open" in way:
                await holding.execute(load("retention_hold"))
            counters = await database.counters()
            beside = asyncio.create_task(pruning.run()) if way != "without" else None
            figures = await _load(driver, requests)
            if beside is not None:
                await beside
            figures["wal_mb"] = (await database.counters()).since(counters).wal / 1e6
            await holding.rollback()
        figures |= pruning.figures | {"longest_lock_wait_ms": waits.longest}
        await asyncio.sleep(1.0)  # the statistics of those who have left
        for part, sizes in (await _sizes(watching)).items():
            figures |= {f"{part}_mb_before": before[part].bytes / 1e6, f"{part}_mb_after": sizes.bytes / 1e6}
            figures[f"{part}_dead"] = sizes.dead
        return figures


async def _load(driver: SystemDriver, requests: int) -> Figures:
    times: list[float] = []

    async def enqueue(number: int) -> None:
        start = time.perf_counter()
        await driver.enqueue(number)
        times.append(time.perf_counter() - start)

    start = time.perf_counter()
    await share_out(range(200, 200 + requests), _WRITERS, enqueue)
    assert driver.ended is not None
    seconds = await driver.ended.reached(200 + requests, _TIMEOUT) - start
    found = quantiles(times, (50, 99))
    return {
        "requests_per_second": requests / seconds,
        "load_seconds": seconds,
        "enqueue_p50_ms": found["p50_ms"],
        "enqueue_p99_ms": found["p99_ms"],
        "enqueue_longest_ms": max(times) * 1000,
    }


class Waits:
    """Looks all the time at who waits for a lock on a table."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.longest = 0.0

    async def __aenter__(self) -> Waits:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        async with _connected(self._url) as connection:
            while True:
                row = await (await connection.execute(load("retention_waits"))).fetchone()
                self.longest = max(self.longest, row.longest)
                await asyncio.sleep(_LOOK)


async def _sizes(connection: Any) -> dict[str, Any]:
    rows = await (await connection.execute(load("retention_sizes"))).fetchall()
    return {row.part: row for row in rows}


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    connecting = psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=namedtuple_row)
    async with await connecting as connection:
        yield connection


async def measure(given: argparse.Namespace) -> dict[str, list[Figures]]:
    """Of each way, run by run, its figures."""
    ways = given.way or _WAYS
    found: dict[str, list[Figures]] = {way: [] for way in ways}
    with measured_database(given.database_url) as database:
        async with provider_server() as provider:
            for _ in range(given.runs):
                for way in ways:
                    found[way].append(await turn(database, provider, way, given.old, given.requests))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retention", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--way", action="append", choices=_WAYS, help="only this one; may be repeated")
    parser.add_argument("--old", type=int, default=300_000, help="results that are old")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--database-url", help="a server to measure on instead of one of our own")
    parser.add_argument("--json", type=Path, help="write all figures there")
    given = parser.parse_args(arguments)
    found = asyncio.run(measure(given))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    for way, runs in found.items():
        print(f"{way}:")
        for name in runs[0]:
            values = [run[name] for run in runs]
            print(
                f"  {name:>22}: {statistics.median(values):12,.1f}  ({min(values):,.1f} to {max(values):,.1f})"
            )


if __name__ == "__main__":
    main()
