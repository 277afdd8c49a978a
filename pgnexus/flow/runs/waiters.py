"""Where those sleep who wait for runs: what wakes them, and who looks for them.

A waiter subscribes first, then looks, then sleeps. It is woken by a NOTIFY that names its run, or by the
safety net that looks every poll_interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import ServiceMisused
from pgnexus.flow.work.outcomes import RUNS_CHANNEL
from pgnexus.looper import Looper

_LOOK_AT_ONCE = 1000


class RunWaiters:
    """The runs whose end, or whose every change, somebody in this process waits for."""

    def __init__(self, db: Database, listener: Listener, *, poll_interval: float) -> None:
        self._db = db
        self._ends: dict[str, set[asyncio.Future[Any]]] = {}
        self._changes: dict[str, set[asyncio.Event]] = {}
        self._named: set[str] = set()
        self._poll_interval = poll_interval
        self._looked_at_all = float("-inf")
        self._look_at_all = False
        self._stopped = False
        self._looper = Looper("run waiters", self._look, poll_interval=poll_interval)
        listener.subscribe(RUNS_CHANNEL, self._notified)

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        """Whoever still waits here is told that nobody will wake him."""
        await self._looper.stop()
        self._stopped = True
        for run_id, futures in self._ends.items():
            for future in futures:
                if not future.done():
                    future.set_exception(ServiceMisused(_stopped(run_id)))
        for events in self._changes.values():
            for event in events:
                event.set()

    @contextmanager
    def end_of(self, run_id: UUID) -> Iterator[asyncio.Future[Any]]:
        """A future of the ended run's row; subscribe before the run can end, or `look` afterwards."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with _entered(self._ends, str(run_id), future):
            yield future

    @contextmanager
    def changes_of(self, run_id: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever something changed in the run."""
        event = asyncio.Event()
        with _entered(self._changes, str(run_id), event):
            yield event

    def check(self, run_id: UUID) -> None:
        """Raise `ServiceMisused` when nobody is woken here any more."""
        if self._stopped:
            raise ServiceMisused(_stopped(str(run_id)))

    def look(self, run_id: UUID) -> None:
        """See whether the run has ended already."""
        self._named.add(str(run_id))
        self._looper.wake()

    def changed(self, run_ids: Iterable[str]) -> None:
        """Something changed in these runs."""
        for run_id in run_ids:
            if run_id in self._ends:
                self._named.add(run_id)
            for event in self._changes.get(run_id, ()):
                event.set()
        if self._named or self._look_at_all:
            self._looper.wake()

    def _notified(self, payload: str) -> None:
        if not self._ends and not self._changes:
            return
        if payload:
            self.changed(payload.split(","))
        else:  # some were not told: the listener was away
            self._look_at_all = bool(self._ends)
            self.changed(list(self._changes))

    async def _look(self) -> float | None:
        # woken with names: only those; now and then, or after a gap in listening: everybody
        names, self._named = self._named & self._ends.keys(), set()
        now = asyncio.get_running_loop().time()
        if self._look_at_all or now - self._looked_at_all >= self._poll_interval:
            names, self._look_at_all, self._looked_at_all = set(self._ends), False, now
        ids = list(names)
        for start in range(0, len(ids), _LOOK_AT_ONCE):
            for row in await self._db.query("ended_runs", {"run_ids": ids[start : start + _LOOK_AT_ONCE]}):
                for future in self._ends.get(str(row.run_id), ()):
                    if not future.done():
                        future.set_result(row)
        return None


@contextmanager
def _entered(waiting: dict[str, set[Any]], run_id: str, waiter: Any) -> Iterator[None]:
    waiting.setdefault(run_id, set()).add(waiter)
    try:
        yield
    finally:
        others = waiting.get(run_id, set())
        others.discard(waiter)
        if not others:
            waiting.pop(run_id, None)


def _stopped(run_id: str) -> str:
    return f"this Executor was stopped while somebody waited for run {run_id}, which goes on"
