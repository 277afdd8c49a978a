"""One pass over the plan after another; contestants take turns, so that a busy moment hits them all."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence

from rich.console import Console

from benchmarks.measurements.backlog import BACKLOG
from benchmarks.measurements.bloat import BLOAT
from benchmarks.measurements.bulk import BULK, LIMITS, WORKERS
from benchmarks.measurements.enqueue import ENQUEUE
from benchmarks.measurements.latency import ALONE, HALF
from benchmarks.measurements.measurement import Measurement, Scene, Turn
from benchmarks.measurements.slow import SLOW, SLOWEST
from benchmarks.measurements.streams import STREAMS
from benchmarks.report.store import Store

MEASUREMENTS = (BULK, WORKERS, SLOW, SLOWEST, ALONE, HALF, ENQUEUE, LIMITS, STREAMS, BACKLOG, BLOAT)
_TURN_LIMIT = 1200.0  # seconds; what takes longer is a fault
_TELLING = ("requests_per_second", "p50_ms", "first_word_p50_ms")


class Run:
    """All rounds of the measurements that are wanted; what the store has already is left out."""

    def __init__(self, scene: Scene, store: Store, wanted: Sequence[Measurement], console: Console) -> None:
        self._scene = scene
        self._store = store
        self._wanted = wanted
        self._console = console
        self._began = time.monotonic()

    async def go(self) -> None:
        plan = self._scene.plan
        short = [measurement for measurement in self._wanted if not measurement.long]
        long = [measurement for measurement in self._wanted if measurement.long]
        for measurements, rounds in ((short, plan.runs), (long, min(plan.runs, plan.long_runs))):
            for number in range(1, rounds + 1):
                for measurement in measurements:
                    await self._measure(measurement, number, rounds)

    async def _measure(self, measurement: Measurement, number: int, rounds: int) -> None:
        store, name = self._store, measurement.name
        turns = measurement.turns(self._scene)
        store.titles[name] = measurement.title
        store.floors[name] = {turn.contestant: turn.floor for turn in turns if turn.floor is not None}
        for turn in turns:
            if not store.has(name, turn.contestant, number):
                said = await self._take(measurement, turn, number)
                minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
                where = f"{minutes:3d}:{seconds:02d}  round {number} of {rounds}  {name}"
                self._console.print(
                    f"{where}, {turn.contestant}: {said}", markup=False, highlight=False, soft_wrap=True
                )

    async def _take(self, measurement: Measurement, turn: Turn, number: int) -> str:
        """Take one turn; what was found in a few words. A fault is kept, and the next one has its turn."""
        name, load = measurement.name, os.getloadavg()[0]
        try:
            async with asyncio.timeout(_TURN_LIMIT):
                figures = await turn.run()
        except Exception as error:  # nobody is there to start the rest again
            text = f"{type(error).__name__}: {error}"
            self._store.fail(name, turn.contestant, number, text)
            return f"no figure: {text}"
        self._store.put(name, turn.contestant, number, {**figures, "load": load})
        return ", ".join(f"{figures[key]:,.1f} {key}" for key in _TELLING if figures.get(key) is not None)
