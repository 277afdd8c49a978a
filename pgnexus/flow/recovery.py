"""Beside every step: work of dead instances is given back, work whose time has come is sent on, waits end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pgnexus.db.database import Database
from pgnexus.looper import Looper

log = logging.getLogger(__name__)

_MOST = 1000
_STALLS_EVERY = 30.0  # seconds between looks for tasks that are judged by time alone


class Recovery:
    """A loop that any number of processes run; ``on_work`` hears when something may be claimed again."""

    def __init__(self, db: Database, on_work: Callable[[], None], *, interval: float) -> None:
        self._db = db
        self._on_work = on_work
        self._interval = interval
        self._looper = Looper("recovery", self._round, poll_interval=interval)
        self._looked_for_stalls_at = float("-inf")

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    def expect(self) -> None:
        """Something is due later: find out when."""
        self._looper.wake()

    async def _round(self) -> float | None:
        recovered = await self._db.query("recover_tasks")
        for row in recovered:
            what = "failed, no attempt is left" if row.exhausted else "given back"
            where = (row.flow_slug, row.run_id, row.step_slug, row.task_index)
            log.warning("%s: run %s: step %s[%d]: its worker was lost; %s", *where, what)
        await self._requeue_stalled()
        [due] = await self._db.query("send_due_tasks", {"limit": _MOST})
        [overdue] = await self._db.query("expire_deferred", {"limit": _MOST})
        if recovered or due.sent:
            self._on_work()
        if len(recovered) >= _MOST or due.sent >= _MOST or overdue.expired >= _MOST:
            return 0
        return None if due.next_in is None else min(due.next_in, self._interval)

    async def _requeue_stalled(self) -> None:
        """For workers that keep no lease here, such as those of other languages."""
        now = time.monotonic()
        if now - self._looked_for_stalls_at >= _STALLS_EVERY:
            self._looked_for_stalls_at = now
            [row] = await self._db.query("requeue_stalled_tasks")
            if row.requeued:
                log.warning("%d tasks ran for longer than their timeout; given back", row.requeued)
                self._on_work()
