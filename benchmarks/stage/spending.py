"""What a measurement costs: processor time by group of processes, WAL, and transactions that write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.report.figures import Figures
from benchmarks.stage.database import Counters, MeasuredDatabase
from benchmarks.stage.server_cpu import ServerCpu, process_seconds

GROUPS = ("caller", "worker", "provider", "postgres")


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one moment."""

    written: Counters
    seconds: Mapping[str, float | None]


class Spending:
    """Reads the counters of everybody who takes part."""

    def __init__(
        self,
        database: MeasuredDatabase,
        url: str,
        *,
        worker: Sequence[int] = (),
        provider: Sequence[int] = (),
        caller: Sequence[int] | None = None,
    ) -> None:
        self._database = database
        self._server = ServerCpu(url)
        self._pids = {
            "caller": [os.getpid()] if caller is None else caller,
            "worker": worker,
            "provider": provider,
        }

    async def read(self) -> Reading:
        written = await self._database.counters()
        seconds = {group: _sum([process_seconds(pid) for pid in pids]) for group, pids in self._pids.items()}
        return Reading(written, {**seconds, "postgres": self._server.seconds()})

    async def figures(self, before: Reading, requests: int) -> Figures:
        """What was spent since, for each of so many requests."""
        now = await self.read()
        spent = now.written.since(before.written)
        cpu: Figures = {
            f"{group}_cpu_us_per_request": _micros(before.seconds[group], now.seconds[group], requests)
            for group in GROUPS
            if group == "postgres" or self._pids[group]
        }
        return {
            **cpu,
            "writes_per_request": spent.writes / requests,
            "wal_bytes_per_request": spent.wal / requests,
        }


def _micros(before: float | None, now: float | None, requests: int) -> float | None:
    return None if before is None or now is None else (now - before) / requests * 1e6


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(value for value in values if value is not None)
