"""The database that is measured: a fresh one for each measurement, and what its server counts."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row

from benchmarks.queries import load
from pgnexus.db import schema
from pgnexus.db.embedded import EmbeddedServer

DROP = sql.SQL("DROP DATABASE {} WITH (FORCE)")
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What the server has written: transactions that got an xid, and bytes of WAL."""

    writes: int
    wal: int

    def since(self, before: Counters) -> Counters:
        return Counters(self.writes - before.writes, self.wal - before.wal)


class MeasuredDatabase:
    """One server; ``url`` is any database of it, from whose side the others are made and watched."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.template: str | None = None  # the database that the others are copied from

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        """The URL of a new database with the schema in it, so that no run finds another's dead rows."""
        if self.template is None:
            self.template = await self._create("template0")
            await schema.migrate(self._url_of(self.template))
        name = await self._create(self.template)
        try:
            yield self._url_of(name)
        finally:
            await self._run(DROP.format(sql.Identifier(name)))

    async def _create(self, template: str) -> str:
        name = f"pgnexus_benchmark_{uuid.uuid4().hex[:12]}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        await self._run(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def _url_of(self, name: str) -> str:
        return make_conninfo("", **{**conninfo_to_dict(self._url), "dbname": name})

    async def counters(self) -> Counters:
        [row] = await self._run(load("counters"))
        return Counters(row.writes, row.wal)

    async def commits(self, url: str) -> int:
        """All transactions ever committed in the database of ``url``, whose clients have left."""
        name, deadline = conninfo_to_dict(url)["dbname"], time.monotonic() + _PATIENCE
        while True:
            [row] = await self._run(load("commits"), {"database": name})
            if row.clients == 0:
                return int(row.commits)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{row.clients} clients stay in {name}")
            await asyncio.sleep(0.05)

    async def checkpoint(self) -> None:
        """Write out what is dirty, so that what was done before does not disturb what is measured."""
        await self._run(load("checkpoint"))

    @asynccontextmanager
    async def eager_autovacuum(self) -> AsyncIterator[None]:
        """Have the server look every second for what is to be cleaned up."""
        await self._run(load("eager_autovacuum"))
        await self._run(load("reload"))
        try:
            yield
        finally:
            await self._run(load("calm_autovacuum"))
            await self._run(load("reload"))

    async def settings(self) -> dict[str, str]:
        """The server's version, and the settings that decide what a commit costs."""
        return {row.name: row.setting for row in await self._run(load("server"))}

    async def commit_ms(self, url: str, count: int = 200) -> float:
        """What one small commit takes alone, in milliseconds (the median): mostly the disk's fsync."""
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(load("probe"))
            times = []
            for _ in range(count):
                start = time.perf_counter()
                await connection.execute(load("probe_commit"))
                times.append(time.perf_counter() - start)
        return round(statistics.median(times) * 1000, 3)

    async def _run(self, query: Any, params: dict[str, Any] | None = None) -> list[Any]:
        connecting = psycopg.AsyncConnection.connect(self._url, autocommit=True, row_factory=namedtuple_row)
        async with await connecting as connection:
            cursor = await connection.execute(query, params)
            return await cursor.fetchall() if cursor.description else []


@contextmanager
def measured_database(url: str | None, programs: Path | None = None) -> Iterator[MeasuredDatabase]:
    """The server of ``url``, or one of our own in a temporary directory, with its default settings; of ``programs``."""
    if url is not None:
        database = MeasuredDatabase(url)
        try:
            yield database
        finally:
            if database.template is not None:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(DROP.format(sql.Identifier(database.template)))
        return
    path = Path(tempfile.mkdtemp(prefix="pgnexus-benchmark-"))
    path.chmod(0o755)  # as root, the server runs as another user
    try:
        with EmbeddedServer(path, programs) as server:
            yield MeasuredDatabase(server.url)
    finally:
        shutil.rmtree(path, ignore_errors=True)
