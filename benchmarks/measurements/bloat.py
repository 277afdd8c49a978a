"""What a long day leaves behind, in a minute: requests without a pause, and how the tables and indexes grow.

Autovacuum looks every second instead of every minute. Beside the second half of the turns somebody holds a
transaction open, behind whose snapshot nothing can be cleaned up, and ends it for the last quarter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from benchmarks.contestants.floor import Floor
from benchmarks.contestants.system import System
from benchmarks.measurements.calls import TIMEOUT, check
from benchmarks.measurements.measurement import Measurement, Samples, Scene, Turn
from benchmarks.queries import load
from benchmarks.report.figures import Figures

_DEPTH = 2000  # requests that wait or run at any moment
_BATCH = 500
_SAMPLES = 24
_LATEST = 0.02  # seconds between looks at how many have ended

Connection = psycopg.AsyncConnection[Any]


class Day:
    """One turn: who works, who watches, and who holds a transaction open."""

    def __init__(self, scene: Scene, kind: type[Floor] | type[System], *, held: bool) -> None:
        self._scene = scene
        self._kind = kind
        self._held = held
        self._sent = 0
        self._over = False
        self.samples: Samples = []

    async def run(self) -> Figures:
        database, seconds = self._scene.database, self._scene.plan.bloat_seconds
        provider = await self._scene.vendors.get()
        async with (
            database.fresh() as url,
            _connect(url) as watching,
            _connect(url) as holding,
            database.eager_autovacuum(),
        ):
            answered, entrant = await provider.calls(), self._kind(url, provider)
            await entrant.prepare()
            async with entrant.bulk() as (_, driver):
                sending = asyncio.create_task(self._send(driver))
                try:
                    await self._watch(driver, watching, holding, seconds)
                finally:
                    self._over = True
                    await sending
                await driver.ended.reached(self._sent, TIMEOUT)  # type: ignore[union-attr]
                await check(driver, self._sent, await provider.calls() - answered, self._sent)
        return self._figures()

    async def _send(self, driver: Any) -> None:
        """Keep as many waiting, whatever the pace."""
        while not self._over:
            if self._sent - driver.ended.count < _DEPTH:
                await driver.enqueue_many(range(self._sent, self._sent + _BATCH))
                self._sent += _BATCH
            else:
                await asyncio.sleep(_LATEST)

    async def _watch(self, driver: Any, watching: Connection, holding: Connection, seconds: float) -> None:
        if self._held:
            await holding.execute(load("hold"))
        start, releases = time.perf_counter(), _SAMPLES * 3 // 4
        for number in range(_SAMPLES + 1):
            await asyncio.sleep(max(0.0, start + number * seconds / _SAMPLES - time.perf_counter()))
            if self._held and number == releases:
                await holding.rollback()
            rows = await (await watching.execute(load("sizes"))).fetchall()
            sample: dict[str, Any] = {"seconds": time.perf_counter() - start, "done": driver.ended.count}
            sample["held"] = self._held and number < releases
            for row in rows:
                sample[f"{row.part}_dead"] = int(row.dead)
                sample[f"{row.part}_table_mb"] = row.table_bytes / 1e6
                sample[f"{row.part}_index_mb"] = row.index_bytes / 1e6
            self.samples.append(sample)
        self._scene.samples[f"bloat, {label(self._kind, held=self._held)}"] = self.samples

    def _figures(self) -> Figures:
        """By quarters: the first is what it can do, the third is the last one beside an open transaction."""
        quarter = _SAMPLES // 4
        marks = [self.samples[number * quarter] for number in range(5)]
        rates = [
            (after["done"] - before["done"]) / (after["seconds"] - before["seconds"])
            for before, after in pairwise(marks)
        ]
        found: Figures = {
            "requests_per_second": (marks[4]["done"] - marks[0]["done"])
            / (marks[4]["seconds"] - marks[0]["seconds"]),
            "first_quarter_per_second": rates[0],
            "third_quarter_per_second": rates[2],
            "last_quarter_per_second": rates[3],
            "requests": float(self._sent),
        }
        for part in ("queues", "others"):
            for what in ("dead", "table_mb", "index_mb"):
                for name, mark in (("middle", marks[2]), ("third_quarter", marks[3]), ("end", marks[4])):
                    found[f"{part}_{what}_{name}"] = mark.get(f"{part}_{what}")
        grown = sum(
            marks[4][f"others_{what}_mb"] - marks[2][f"others_{what}_mb"] for what in ("table", "index")
        )
        found["others_bytes_per_request"] = grown * 1e6 / max(1, marks[4]["done"] - marks[2]["done"])
        return found


def label(kind: type[Floor] | type[System], *, held: bool) -> str:
    return f"{kind.name}, a transaction open beside it" if held else kind.name


@asynccontextmanager
async def _connect(url: str) -> AsyncIterator[Connection]:
    connecting = psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=namedtuple_row)
    async with await connecting as connection:
        yield connection


def _turns(scene: Scene) -> Sequence[Turn]:
    def turn(kind: type[Floor] | type[System], held: bool) -> Turn:
        async def run() -> Figures:
            return await Day(scene, kind, held=held).run()

        floor = ("bloat", label(Floor, held=held)) if kind is System else None
        return Turn(label(kind, held=held), run, floor)

    return [turn(kind, held) for held in (False, True) for kind in (Floor, System)]


BLOAT = Measurement("bloat", "requests without a pause, autovacuum every second", _turns, long=True)
