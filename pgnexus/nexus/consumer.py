"""Nexus side, T2: requests off their lanes into runs of LLMRequestWorkflow, never more than it can run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from uuid import UUID

from pgnexus import telemetry
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.flow.registry import Registry
from pgnexus.looper import Looper
from pgnexus.messages import CANCEL_CHANNEL, REQUEST_QUEUES, REQUESTS_CHANNEL
from pgnexus.nexus.attempt import Attempt
from pgnexus.nexus.settlement import Claim
from pgnexus.nexus.settler import Settler
from pgnexus.nexus.workflow import LLMRequestWorkflow
from pgnexus.settings import Settings
from pgnexus.take_limit import TakeLimit

log = logging.getLogger(__name__)

MAX_BATCH = 500
_GATHER = 0.002  # seconds in which freed slots are gathered, so that a busy consumer takes batches
_REMEMBER_CANCELS = 60.0

_Fence = tuple[UUID, int]  # a run and the attempt in which this worker holds it


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
        self._limit = TakeLimit(MAX_BATCH)
        # slots that only interactive requests may use, so that no flood of others delays them
        self._reserve = max(1, settings.concurrency // 10)
        self._slots = settings.concurrency + self._reserve
        self._running: dict[_Fence, asyncio.Task[None]] = {}
        # those that may be given up: what is answered is stored, come what may
        self._calling: set[_Fence] = set()
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

    @property
    def in_flight(self) -> int:
        return len(self._running)

    async def stop(self, drain_timeout: float) -> None:
        """Take nothing more; let what runs finish for ``drain_timeout`` seconds, then give the rest back."""
        await self._looper.stop()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=drain_timeout)
        self.hurry()
        if self._running:
            await asyncio.wait(self._running.values())

    def hurry(self) -> None:
        """Give back at once what runs, also while `stop` lets it finish."""
        self._draining = True
        self._give_up(self._calling)

    async def _take(self) -> float | None:
        free = self._slots - len(self._running)
        self._hungry = free <= 0
        if self._hungry or not self._registry.is_alive():
            return None
        limit = min(free, self._limit.size)
        others = max(0, min(free - self._reserve, limit))
        params = {"worker_id": self._registry.instance_id(), "limit": limit, "others": others}
        rows = await self._limit.take(self._db.query("take_requests", params), self._reject)
        if rows is None:
            return 0
        now = time.monotonic()
        for row in rows:
            expires_at = None if row.seconds_left is None else now + row.seconds_left
            self._begin(Claim(row.run_id, row.step_slug, row.attempt, row.input, expires_at))
        self._hungry = self._slots - len(self._running) <= self._reserve
        return 0 if not self._hungry and len(rows) >= others else None

    def _begin(self, claim: Claim) -> None:
        fence = (claim.run_id, claim.attempt)
        task = asyncio.create_task(self._watched(claim, fence), name=f"request {claim.run_id}")
        self._running[fence] = task
        self._calling.add(fence)
        task.add_done_callback(lambda _: self._ended(fence))

    async def _watched(self, claim: Claim, fence: _Fence) -> None:
        with telemetry.request(claim.run_id, claim.attempt, claim.input) as watched:
            await self._run(claim, fence, watched)

    async def _run(self, claim: Claim, fence: _Fence, watched: telemetry.WatchedRequest) -> None:
        calls: list[Attempt] = []
        try:
            if claim.run_id in self._cancelled:  # while its claim was on its way here
                settlement = self._workflow.cancelled(claim, calls)
            else:
                settlement = await self._workflow.run(claim, calls)
        except asyncio.CancelledError:
            if claim.run_id in self._cancelled:
                settlement = self._workflow.cancelled(claim, calls)
            else:  # given back, or lost to another worker: then it is refused, and its calls are booked all the same
                settlement = self._workflow.release(claim, calls)
        except Exception:
            log.exception("request %s: failed in our own code", claim.run_id)
            settlement = self._workflow.broken(claim, calls)
        finally:
            self._calling.discard(fence)
        watched.settled(settlement.outcome, settlement.result or settlement.details)
        if not await self._settler.settle(settlement):
            log.info("request %s: attempt %d had been taken from this worker", claim.run_id, claim.attempt)

    def _ended(self, fence: _Fence) -> None:
        task = self._running.pop(fence)
        self._calling.discard(fence)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("request %s: failed in our own code", fence[0], exc_info=error)
        if self._hungry and self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER, self._gathered)

    def _give_up(self, fences: Iterable[_Fence]) -> None:
        for fence in tuple(fences):
            self._running[fence].cancel()

    def _gathered(self) -> None:
        self._gathering = None
        self._looper.wake()

    def _on_cancel(self, payload: str) -> None:
        now = time.monotonic()
        for run_id in [known for known, at in self._cancelled.items() if now - at > _REMEMBER_CANCELS]:
            del self._cancelled[run_id]
        named = {UUID(text) for text in payload.split(",")} if payload else set()
        self._cancelled |= dict.fromkeys(named, now)  # a claim may be on its way here
        self._give_up(fence for fence in self._calling if fence[0] in named)

    def _on_lost(self) -> None:
        """Others have been given what runs here: go on paying for none of it."""
        self._give_up(self._calling)

    async def _reject(self) -> None:
        worker_id = self._registry.instance_id()
        for lane in REQUEST_QUEUES.values():
            for row in await self._db.query("reject_request", {"lane": lane, "worker_id": worker_id}):
                log.error("queue %s: message %d cannot be taken, archived: %s", lane, row.msg_id, row.reason)
