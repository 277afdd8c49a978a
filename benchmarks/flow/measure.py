"""One measurement: a fresh database, worker processes, a clock, and a look at what came out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from benchmarks.flow.cases import Case
from benchmarks.flow.driver import define
from benchmarks.flow.queries import load
from benchmarks.flow.shapes import SHAPES
from benchmarks.flow.ways import WAYS
from benchmarks.report.figures import Figures
from benchmarks.stage.child import Child, child
from benchmarks.stage.database import MeasuredDatabase
from benchmarks.stage.server_cpu import ServerCpu, process_seconds

_TIMEOUT = 600.0
# The database is asked for the end as often as 1 % of the time so far, within these seconds: exact to that 1 %.
_SOONEST, _LATEST = 0.001, 0.05

Connection = psycopg.AsyncConnection[Any]


async def measure(database: MeasuredDatabase, case: Case, way: str, batch: int) -> Figures:
    """The clock runs from the first start to the commit of the last run's end, as another connection sees it."""
    warm_up = case.warm_up()
    async with database.fresh() as url:
        if not WAYS[way].defines:
            define(url, case.shape)
        connecting = psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=namedtuple_row)
        async with await connecting as connection:
            async with AsyncExitStack() as stack:
                arguments = (way, url, case.shape, "--batch", batch)
                starting = [child("benchmarks.flow.worker", *arguments) for _ in range(case.workers)]
                workers = await asyncio.gather(*map(stack.enter_async_context, starting))
                await _run(connection, workers, warm_up, 0)
                cpu = ServerCpu(url)
                computed, worked = cpu.seconds(), _worked(workers)
                written = await database.counters()
                seconds = await _run(connection, workers, case, warm_up.runs)
                spent = (await database.counters()).since(written)
                computed_then, worked_then = cpu.seconds(), _worked(workers)
            await _check(connection, case, warm_up)
    return {
        "steps_per_second": case.steps / seconds,
        "ms_per_step": seconds / case.steps * 1000,
        "commits_per_step": spent.writes / case.steps,
        "wal_bytes_per_step": spent.wal / case.steps,
        "server_cpu_ms_per_step": _per_step(computed, computed_then, case),
        "worker_cpu_ms_per_step": _per_step(worked, worked_then, case),
    }


async def _run(connection: Connection, workers: Sequence[Child], case: Case, first: int) -> float:
    """Have the runs of ``case`` made, numbered from ``first``; the seconds until all had ended."""
    start = time.perf_counter()
    for worker, portion in zip(workers, case.portions(first), strict=True):
        worker.tell(portion.as_json())
    while True:
        cursor = await connection.execute(load("ended"), {"flow": case.shape})
        [found] = await cursor.fetchall()
        seconds = time.perf_counter() - start
        if found.failed:
            raise RuntimeError(f"{found.failed} runs of {case.name} failed")
        if found.ended == first + case.runs:
            return seconds
        if any(worker.left for worker in workers):
            raise RuntimeError("a worker is gone; what it said is above")
        if seconds > _TIMEOUT:
            raise RuntimeError(f"{found.ended} of {first + case.runs} runs ended within {_TIMEOUT:g} s")
        await asyncio.sleep(min(max(seconds / 100, _SOONEST), _LATEST))


async def _check(connection: Connection, case: Case, warm_up: Case) -> None:
    """A figure counts only if every run completed with the right output, and nothing is left."""
    params = {
        "flow": case.shape,
        "leaf": SHAPES[case.shape][-1].slug,
        "answer": "width" if case.shape == "spread" else "n",
        "runs": case.runs + warm_up.runs,
        "steps": case.steps + warm_up.steps,
    }
    [found] = await (await connection.execute(load("faults"), params)).fetchall()
    faults = {name: count for name, count in found._asdict().items() if count}
    if faults:
        raise RuntimeError(f"{case.name}: {faults}")


def _worked(workers: Sequence[Child]) -> float | None:
    found = [process_seconds(worker.pid) for worker in workers]
    return None if None in found else sum(seconds or 0.0 for seconds in found)


def _per_step(before: float | None, after: float | None, case: Case) -> float | None:
    return None if before is None or after is None else (after - before) / case.steps * 1000
