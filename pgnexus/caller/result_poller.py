"""T4: results off their queue into job_results, and word to whoever waits. Any number run side by side."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from pydantic import ValidationError

from pgnexus.caller.waiters import Waiters
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.looper import Looper
from pgnexus.messages import DONE_CHANNEL, RESULTS_CHANNEL, LLMResult
from pgnexus.printable import one_line
from pgnexus.settings import Settings
from pgnexus.take_limit import TakeLimit

log = logging.getLogger(__name__)

MAX_BATCH = 500
_ABANDONED_CHANNEL = "pgnexus_abandoned"  # a step that waited for a request ended without it
_SWEEP_ALL_EVERY = 3600.0


class LlmResultPoller:
    """Two loops: one takes results, woken by NOTIFY; one sweeps what is due and what is overdue.

    Both run without any nexus, so that a request's deadline holds when nobody is there to serve it.
    """

    def __init__(
        self, db: Database, listener: Listener, notifier: Notifier, settings: Settings, waiters: Waiters
    ) -> None:
        self._db = db
        self._notifier = notifier
        self._waiters = waiters
        self._queue = settings.reply_to
        self._poll_interval = settings.poll_interval
        self._limit = TakeLimit(MAX_BATCH)
        self._swept_all_at = float("-inf")
        self._taker = Looper("result poller", self._take, poll_interval=settings.poll_interval)
        self._sweeper = Looper("result sweeper", self._sweep, poll_interval=settings.poll_interval)
        listener.subscribe(RESULTS_CHANNEL, lambda _: self._taker.wake())
        listener.subscribe(_ABANDONED_CHANNEL, lambda _: self._sweeper.wake())

    def start(self) -> None:
        self._taker.start()
        self._sweeper.start()

    async def stop(self) -> None:
        await self._taker.stop()
        await self._sweeper.stop()

    def expect(self) -> None:
        """Something is scheduled: find out when it is due."""
        self._sweeper.wake()

    async def _take(self) -> float | None:
        limit, notify = self._limit.size, self._notifier.claim(DONE_CHANNEL)
        params = {"queue": self._queue, "limit": limit, "notify": notify, "wanted": self._waiters.wanted()}
        rows = await self._limit.take(self._db.query("collect_results", params), self._reject)
        if rows is None:
            return 0
        ended = [row for row in rows if row.request_id is not None]
        for row in ended:
            if self._waiters.is_waiting(row.request_id):
                self._deliver(row.request_id, row.result)
        if notify and not ended:
            self._notifier.unclaim(DONE_CHANNEL)
        if ended and not notify:
            self._notifier.committed(DONE_CHANNEL, [str(row.request_id) for row in ended])
        return 0 if rows and rows[0].taken == limit else None

    def _deliver(self, request_id: UUID, message: object) -> None:
        try:
            result = LLMResult.model_validate(message)
        except ValidationError:  # or None: who waits came while it was taken
            result = None
        if result is not None and (result.ok or result.error is not None):
            self._waiters.deliver(result)
        else:  # a foreign answer of an odd form: its row has the right one
            self._waiters.look(request_id)

    async def _reject(self) -> None:
        for row in await self._db.query("reject_result", {"queue": self._queue}):
            log.error(
                "queue %s: message %d cannot be stored, archived: %s",
                self._queue,
                row.msg_id,
                one_line(row.reason),
            )

    async def _sweep(self) -> float | None:
        now = asyncio.get_running_loop().time()
        everything = now - self._swept_all_at >= _SWEEP_ALL_EVERY
        [row] = await self._db.query("sweep", {"limit": MAX_BATCH, "all": everything})
        if everything:
            await self._db.query("ensure_partitions")
            self._swept_all_at = now
        if row.sent == MAX_BATCH or row.timed_out == MAX_BATCH:
            return 0
        return None if row.next_in is None else min(max(row.next_in, 0.001), self._poll_interval)
