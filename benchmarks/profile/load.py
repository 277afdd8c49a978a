"""The load that is looked at, and what the server has counted of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from benchmarks.contestants.system import System, SystemDriver
from benchmarks.profile.queries import load
from benchmarks.profile.sampling import sampled
from benchmarks.stage.database import MeasuredDatabase
from benchmarks.stage.provider_server import ProviderServer
from benchmarks.stage.server_cpu import ServerCpu, process_seconds

_TIMEOUT = 600.0
_WARM_UP = 500
_WRITERS = 100
LOADS = ("bulk", "one-by-one", "alone")

Rows = list[dict[str, Any]]


@dataclass(slots=True)
class Profile:
    """What was counted: statements and WAL of so many requests, functions and tables of all that ever ran."""

    requests: int
    ever: int
    seconds: float = 0.0
    worker_us: float = 0.0
    server_us: float = 0.0
    statements: Rows = field(default_factory=list)
    functions: Rows = field(default_factory=list)
    tables: Rows = field(default_factory=list)
    wal: Rows = field(default_factory=list)


async def profile(
    database: MeasuredDatabase, provider: ProviderServer, kind: str, requests: int, stacks: Path | None
) -> Profile:
    """Run the load once, against a database of its own."""
    found = Profile(requests, _WARM_UP + requests)
    async with database.fresh() as url, await _connect(url) as connection:
        extensions = {row["name"] for row in await _rows(connection, "extensions")}
        await connection.execute(load("create_statements"))
        inspects = "pg_walinspect" in extensions
        if inspects:
            await connection.execute(load("create_walinspect"))
        async with _driven(System(url, provider), kind) as (pid, driver):
            await _drive(driver, kind, 0, _WARM_UP)
            [before] = await _rows(connection, "forget")
            async with sampled(pid, stacks):
                cpu = ServerCpu(url)
                worker, server = process_seconds(pid) or 0.0, cpu.seconds() or 0.0
                found.seconds = await _drive(driver, kind, _WARM_UP, requests)
                found.worker_us = ((process_seconds(pid) or 0.0) - worker) / requests * 1e6
                found.server_us = ((cpu.seconds() or 0.0) - server) / requests * 1e6
            [after] = await _rows(connection, "lsn")
            found.statements = await _rows(connection, "statements")
            if (stored := await driver.stored()) != found.ever:
                raise RuntimeError(f"{stored} of {found.ever} results are stored")
        # A backend tells of its tables and functions now and then, and when it leaves.
        found.functions = await _rows(connection, "functions")
        found.tables = await _rows(connection, "tables")
        if inspects:
            found.wal = await _rows(connection, "wal", first=before["lsn"], last=after["lsn"])
    return found


@asynccontextmanager
async def _driven(system: System, kind: str) -> AsyncIterator[tuple[int, SystemDriver]]:
    """The worker's process, and who drives it."""
    async with system.bulk() as (worker, driver):
        yield worker.pids[0], driver


async def _drive(driver: SystemDriver, kind: str, first: int, count: int) -> float:
    """Seconds until the last result is stored."""
    numbers = range(first, first + count)
    assert driver.ended is not None
    start = time.perf_counter()
    if kind == "bulk":
        await driver.enqueue_many(numbers)
    elif kind == "alone":
        for number in numbers:
            await driver.enqueue(number)
            await driver.ended.reached(number + 1, _TIMEOUT)
    else:
        left = iter(numbers)

        async def writer() -> None:
            for number in left:
                await driver.enqueue(number)

        await asyncio.gather(*(writer() for _ in range(_WRITERS)))
    return await driver.ended.reached(first + count, _TIMEOUT) - start


async def _connect(url: str) -> psycopg.AsyncConnection[dict[str, Any]]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row)


async def _rows(
    connection: psycopg.AsyncConnection[dict[str, Any]], name: str, **params: Any
) -> list[dict[str, Any]]:
    return await (await connection.execute(load(name), params)).fetchall()
