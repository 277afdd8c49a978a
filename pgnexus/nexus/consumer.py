"""Nexus side, T2: requests off their lanes into runs of LLMRequestWorkflow, never more than it can run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from uuid import UUID

from pgnexus import telemetry
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.flow.registry import Registry
from pgnexus.looper import Looper
from pgnexus.messages import CANCEL_CHANNEL, REQUEST_QUEUES, REQUESTS_CHANNEL
from pgnexus.nexus.books.attempt import Attempt
from pgnexus.nexus.parking import PARKED_CHANNEL, Parking, Room, claimed
from pgnexus.nexus.settlement import SHARE, Claim, Settlement
from pgnexus.nexus.settler import Settler
from pgnexus.nexus.shares import Shares
from pgnexus.nexus.strays import Strays
from pgnexus.nexus.workflow import LLMRequestWorkflow
from pgnexus.printable import one_line
from pgnexus.settings import Settings
from pgnexus.take_limit import TakeLimit

log = logging.getLogger(__name__)

MAX_BATCH = 500
_TOGETHER = 50  # requests that begin in one turn of the event loop
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
        room: Room | None = None,
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
        self._running: dict[asyncio.Task[None], Claim] = {}
        # those that may be given up: what is answered is stored, come what may
        self._calling: dict[asyncio.Task[None], Claim] = {}
        self._parking = Parking(db, registry, room, interval=settings.poll_interval)
        self._shares = Shares(db, registry, settings.concurrency, interval=settings.poll_interval)
        self._cancelled: dict[UUID, float] = {}
        self.strays = Strays(db, registry, settler)
        self._hungry = False
        self._gathering: asyncio.TimerHandle | None = None
        self._looper = Looper("queue consumer", self._take, poll_interval=settings.poll_interval)
        self._watcher = Looper("claims", self._watch, poll_interval=settings.heartbeat_interval)
        listener.subscribe(REQUESTS_CHANNEL, self._on_requests)
        listener.subscribe(PARKED_CHANNEL, self._on_parked)
        listener.subscribe(CANCEL_CHANNEL, self._on_cancel)
        # a standby that took over may know of claims that were settled, or given back, on the one it followed
        listener.on_connected(self._doubt)
        registry.on_lost(self._on_lost)

    def start(self) -> None:
        self._looper.start()
        self._watcher.start()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def waits(self, scope: str) -> bool:
        """Whether somebody is known to wait in line for this scope."""
        return self._parking.waits(scope)

    async def stop(self, drain_timeout: float) -> None:
        """Take nothing more; let what runs finish for ``drain_timeout`` seconds, then give the rest back.

        A database that does not take it within a lease is not waited for: others have the work then.
        """
        await self._looper.stop()
        if self._running:
            await asyncio.wait(self._running, timeout=drain_timeout)
        self.hurry()
        if self._running:
            await asyncio.wait(self._running, timeout=self._settings.worker_lease)
        if self._running:
            log.warning("%d requests are left to others: they could not be stored", len(self._running))
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running)
        await self._watcher.stop()

    def hurry(self) -> None:
        """Give back at once what runs, also while `stop` lets it finish."""
        self._give_up(self._calling)

    def _room(self) -> tuple[int, int]:
        """Free slots, and how many of them are not kept for interactive requests."""
        free = self._slots - len(self._running)
        return free, max(0, free - self._reserve)

    async def _take(self) -> float | None:
        try:
            if self.strays.doubt.is_due:
                await self.strays.give_back(
                    {(claim.run_id, claim.attempt) for claim in self._running.values()}
                )
            pause = await self._take_all()
        except Exception:
            self.strays.doubt.rise()
            raise
        left = self.strays.doubt.pause()
        return pause if left is None else left if pause is None else min(pause, left)

    async def _take_all(self) -> float | None:
        free, others = self._room()
        self._hungry = free <= 0
        if not self._registry.is_alive():
            return None
        if others <= 0 and await self._shares.look():
            self._parking.heard(SHARE)
        if free <= 0:
            return self._shares.pause()
        self._begin(await self._parking.take(free, others))
        free, others = self._room()
        await self._take_shares(self._shares.turns(free, others))
        more = await self._take_lanes()
        if not more:
            await self._take_shares(self._room()[0])
        self._hungry = self._room()[1] <= 0
        if self._hungry:
            return self._shares.pause()
        return 0 if more else self._parking.pause()

    async def _take_lanes(self) -> bool:
        """Whether there may be more than was taken."""
        free, others = self._room()
        limit = min(free, self._limit.size)
        if limit <= 0:
            return True
        others = min(others, limit)
        params = {"worker_id": self._registry.instance_id(), "limit": limit, "others": others}
        rows = await self._limit.take(self._db.query("take_requests", params), self._reject)
        if rows is None:
            return True
        self._begin(claimed(rows))
        return len(rows) >= others

    async def _take_shares(self, turns: int) -> None:
        if turns > 0 and self._parking.waits(SHARE):
            self._begin(await self._parking.take_from(SHARE, turns, self._room()[1]))
        if not self._parking.waits(SHARE):
            self._shares.emptied()

    def _begin(self, claims: list[Claim]) -> None:
        """Start them, some in each turn of the event loop: a batch of hundreds does not hold up all others, and its
        last ones find connections that its first ones have done with.
        """
        turns = [asyncio.Event() for _ in range(0, len(claims), _TOGETHER)]
        for number, claim in enumerate(claims):
            turn = turns[number // _TOGETHER]
            task = asyncio.create_task(self._watched(claim, turn), name=f"request {claim.run_id}")
            self._running[task] = self._calling[task] = claim
            self._shares.began(claim)
            task.add_done_callback(self._ended)
        _begin_turns(deque(turns))

    async def _watched(self, claim: Claim, turn: asyncio.Event) -> None:
        who = (claim.run_id, claim.attempt, claim.input)
        with telemetry.request(*who, waited=claim.waited) as watched:
            settlement = await self._run(claim, turn)
            watched.settled(settlement.outcome, settlement.result or settlement.details)
            if not await self._settler.settle(settlement):
                watched.settled("lost")
                log.info(
                    "request %s: attempt %d had been taken from this worker", claim.run_id, claim.attempt
                )
            self._parking.settled(claim, settlement.scope)

    async def _run(self, claim: Claim, turn: asyncio.Event) -> Settlement:
        calls: list[Attempt] = []
        try:
            await turn.wait()
            if claim.run_id in self._cancelled:  # while its claim was on its way here
                return self._workflow.cancelled(claim, calls)
            return await self._workflow.run(claim, calls)
        except asyncio.CancelledError:
            if claim.run_id in self._cancelled:
                return self._workflow.cancelled(claim, calls)
            # given back, or lost to another worker: then it is refused, and its calls are booked all the same
            return self._workflow.release(claim, calls)
        except Exception:
            log.exception("request %s: failed in our own code", claim.run_id)
            return self._workflow.broken(claim, calls)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._calling.pop(task, None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        claim = self._running.pop(task)
        self._calling.pop(task, None)
        self._shares.ended(claim)
        if task.cancelled():  # before its first step, or left to others by `stop`: nothing was settled
            self._doubt()
        elif (error := task.exception()) is not None:
            log.error("request %s: failed in our own code", claim.run_id, exc_info=error)
        if self._gathering is None and (self._hungry or self._parking.waiting):
            self._gathering = asyncio.get_running_loop().call_later(_GATHER, self._gathered)

    def _give_up(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        for task in tuple(tasks):
            self._calling.pop(task)  # once: what it does to end in good order is not to be cut off as well
            task.cancel()

    def _doubt(self) -> None:
        self.strays.doubt.rise()
        self._looper.wake()

    def _gathered(self) -> None:
        self._gathering = None
        self._parking.freed()
        self._looper.wake()

    def _on_requests(self, _: str) -> None:
        self._shares.heard()
        self._looper.wake()

    def _on_parked(self, scope: str) -> None:
        self._parking.heard(scope)
        if scope == SHARE:
            self._shares.told()
        self._looper.wake()

    def _on_cancel(self, payload: str) -> None:
        if payload:
            self._cancel(UUID(text) for text in payload.split(","))
        else:  # the listener is back, and may have missed some
            self._watcher.wake()

    def _cancel(self, run_ids: Iterable[UUID]) -> None:
        now = time.monotonic()
        for run_id in [known for known, at in self._cancelled.items() if now - at > _REMEMBER_CANCELS]:
            del self._cancelled[run_id]
        named = set(run_ids)
        self._cancelled |= dict.fromkeys(named, now)  # a claim may be on its way here
        self._give_up(task for task, claim in self._calling.items() if claim.run_id in named)

    async def _watch(self) -> None:
        """Give up what is not this worker's any more, also when nobody could tell it."""
        held = dict(self._calling)
        if not held:
            return
        params = {
            "worker_id": self._registry.instance_id(),
            "run_ids": [claim.run_id for claim in held.values()],
            "attempts": [claim.attempt for claim in held.values()],
        }
        rows = await self._db.query("lost_claims", params)
        self._cancel(row.run_id for row in rows if row.cancelled)
        lost = {(row.run_id, row.attempt) for row in rows if not row.cancelled}
        self._give_up(
            task
            for task, claim in held.items()
            if task in self._calling and (claim.run_id, claim.attempt) in lost
        )

    def _on_lost(self) -> None:
        """Others have been given what runs here: go on paying for none of it."""
        self._give_up(self._calling)

    async def _reject(self) -> None:
        worker_id = self._registry.instance_id()
        for lane in REQUEST_QUEUES.values():
            for row in await self._db.query("reject_request", {"lane": lane, "worker_id": worker_id}):
                log.error(
                    "queue %s: message %d cannot be taken, archived: %s",
                    lane,
                    row.msg_id,
                    one_line(row.reason),
                )


def _begin_turns(turns: deque[asyncio.Event]) -> None:
    """The first of them now, each other one a turn of the event loop later."""
    if turns:
        turns.popleft().set()
        asyncio.get_running_loop().call_soon(_begin_turns, turns)
