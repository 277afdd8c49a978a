"""Beside every step: work of dead instances is given back, work whose time has come is sent on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pgnexus.db.database import Database
from pgnexus.looper import Looper

log = logging.getLogger(__name__)


class Recovery:
    """A loop that any number of processes run; ``on_work`` hears when something may be claimed again."""

    def __init__(self, db: Database, flow_slug: str, on_work: Callable[[], None], *, interval: float) -> None:
        self._db = db
        self._flow_slug = flow_slug
        self._on_work = on_work
        self._interval = interval
        self._looper = Looper("recovery", self._round, poll_interval=interval)

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _round(self) -> float | None:
        recovered = await self._db.query("recover_tasks")
        for row in recovered:
            what = "failed, no attempt is left" if row.exhausted else "given back"
            log.warning("request %s: its worker was lost; %s", row.run_id, what)
        [due] = await self._db.query("send_due_tasks", {"flow_slug": self._flow_slug})
        if recovered or due.sent:
            self._on_work()
        return None if due.next_in is None else min(due.next_in, self._interval)
