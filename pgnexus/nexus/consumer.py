"""Nexus side, T2: requests off their lanes into runs of LLMRequestWorkflow, never more than it can run."""

from __future__ import annotations

import asyncio
import logging
import time
from uuid import UUID

import psycopg

from pgnexus.db.connection import is_data_fault
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.flow.registry import Registry
from pgnexus.looper import Looper
from pgnexus.messages import CANCEL_CHANNEL, REQUEST_QUEUES, REQUESTS_CHANNEL
from pgnexus.nexus.settler import Settler
from pgnexus.nexus.workflow import Claim, LLMRequestWorkflow
from pgnexus.portion import Portion
from pgnexus.settings import Settings

log = logging.getLogger(__name__)

MAX_BATCH = 500
_GATHER = 0.002  # seconds in which freed slots are gathered, so that a busy consumer takes batches
_REMEMBER_CANCELS = 60.0


class QueueConsumer:
    """Takes requests while it has free slots, and runs each in a task of its own."""

    def __init__(
        self,
        db: Database,
        listener: Listener,
        registry: Registry,
        workflow: LLMRequestWorkflow,
        settler: Settler,
        settings: Settings,
    ) -> None:
        self._db = db
        self._registry = registry
        self._workflow = workflow
        self._settler = settler
        self._settings = settings
        self._portion = Portion(MAX_BATCH)
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._cancelled: dict[UUID, float] = {}
        self._draining = False
        self._hungry = False
        self._gathering: asyncio.TimerHandle | None = None
        self._looper = Looper("queue consumer", self._take, poll_interval=settings.poll_interval)
        listener.subscribe(REQUESTS_CHANNEL, lambda _: self._looper.wake())
        listener.subscribe(CANCEL_CHANNEL, self._on_cancel)
        registry.on_lost(self._on_lost)

    def start(self) -> None:
        self._looper.start()

    def wake(self) -> None:
        """Something may be claimed."""
        self._looper.wake()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    async def stop(self, drain_timeout: float) -> None:
        """Take nothing more; let what runs finish for ``drain_timeout`` seconds, then give the rest back."""
        await self._looper.stop()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=drain_timeout)
        self._draining = True
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())

    async def _take(self) -> float | None:
        free = self._settings.concurrency - len(self._running)
        self._hungry = free <= 0
        if self._hungry or not self._registry.is_alive():
            return None
        limit = min(free, self._portion.size)
        try:
            rows = await self._db.query(
                "take_requests", {"worker_id": self._registry.instance_id(), "limit": limit}
            )
        except psycopg.Error as error:
            if not is_data_fault(error):
                raise
            await self._isolate(error)
            return 0
        self._portion.grow()
        now = time.monotonic()
        for row in rows:
            expires_at = None if row.seconds_left is None else now + row.seconds_left
            self._begin(Claim(row.run_id, row.step_slug, row.attempt, row.input, expires_at))
        if len(rows) < limit:
            return None
        self._hungry = len(self._running) >= self._settings.concurrency
        return None if self._hungry else 0

    def _begin(self, claim: Claim) -> None:
        task = asyncio.create_task(self._run(claim), name=f"request {claim.run_id}")
        self._running[claim.run_id] = task
        task.add_done_callback(lambda _: self._ended(claim.run_id))
        if claim.run_id in self._cancelled:
            task.cancel()

    async def _run(self, claim: Claim) -> None:
        try:
            settlement = await self._workflow.run(claim)
        except asyncio.CancelledError:
            if not self._draining:
                return  # cancelled, or lost to another worker: its end is stored already
            settlement = self._workflow.release(claim)
        if not await self._settler.settle(settlement):
            log.info("request %s: attempt %d had been taken from this worker", claim.run_id, claim.attempt)

    def _ended(self, run_id: UUID) -> None:
        task = self._running.pop(run_id)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("request %s: failed in our own code", run_id, exc_info=error)
        if self._hungry and self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self._looper.wake()

    def _on_cancel(self, payload: str) -> None:
        now = time.monotonic()
        for run_id in [known for known, at in self._cancelled.items() if now - at > _REMEMBER_CANCELS]:
            del self._cancelled[run_id]
        for text in payload.split(",") if payload else ():
            run_id = UUID(text)
            self._cancelled[run_id] = now  # its claim may be on its way here
            if (task := self._running.get(run_id)) is not None:
                task.cancel()

    def _on_lost(self) -> None:
        """Others have been given what runs here: go on paying for none of it."""
        for task in self._running.values():
            task.cancel()

    async def _isolate(self, error: psycopg.Error) -> None:
        if not self._portion.halve():
            return
        reason = str(error).splitlines()[0]
        for lane in (REQUEST_QUEUES["interactive"], REQUEST_QUEUES["standard"], REQUEST_QUEUES["batch"]):
            [row] = await self._db.query("reject_request", {"lane": lane, "reason": reason})
            if row.msg_id is not None:
                log.error("queue %s: message %d cannot be taken, archived: %s", lane, row.msg_id, reason)
                return
