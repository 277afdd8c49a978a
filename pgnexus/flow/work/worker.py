"""Runs the tasks of this process's flows: never more than it has slots for, woken by NOTIFY."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import psycopg

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.errors import DatabaseUnavailable
from pgnexus.flow.registry import Registry
from pgnexus.flow.work.batches import MAX_BATCH
from pgnexus.flow.work.claims import Fence, Held, Holdings, Stop
from pgnexus.flow.work.deferral import Kinds, Signal
from pgnexus.flow.work.flows import Flows
from pgnexus.flow.work.handling import Handling
from pgnexus.flow.work.lanes import Lanes
from pgnexus.flow.work.outcomes import TASKS_CHANNEL, Outcomes
from pgnexus.flow.work.store import FlowStore
from pgnexus.flow.work.watchdog import Watchdog
from pgnexus.looper import Looper
from pgnexus.settings import Settings

log = logging.getLogger(__name__)

_GATHER = 0.002  # seconds in which freed slots are gathered, so that a busy worker takes batches
_TICK = 0.1  # seconds between looks for handlers that are past their timeout
_LAST_WORDS = 10.0  # seconds to give back what is cancelled; a database that is away then is not waited for
_SOON = 0.05  # seconds until calls under way are looked at again
_UNKNOWN_DELAY = 60.0  # seconds until somebody else may try a step that is unknown here


class Worker:
    """Claims tasks from the queues of its flows while it has free slots, and runs them.

    ``kinds`` says what tasks of this process may wait for, beside signals. ``on_delay`` hears when something
    was stored that is due at a later time, ``on_stored`` in which runs something changed, when these are few.
    """

    def __init__(
        self,
        db: Database,
        listener: Listener,
        notifier: Notifier,
        registry: Registry,
        flows: Flows,
        settings: Settings,
        *,
        kinds: Kinds | None = None,
        on_delay: Callable[[], None] = lambda: None,
        on_stored: Callable[[Iterable[UUID]], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._flows = flows
        self._on_delay = on_delay
        self._on_stored = on_stored
        self._holdings = Holdings(settings.flow_concurrency)
        self._store = FlowStore(db, registry.instance_id(), patience=settings.worker_lease)
        known = {"signal": Signal(), **(kinds or {})}
        self._outcomes = Outcomes(
            db, self._store, notifier, self._holdings, known, flows.handlers, worker=self
        )
        self._lanes = Lanes(Handling(db, self._store, self._outcomes, settings).run)
        self._watchdog = Watchdog(self._holdings, registry, patience=settings.flow_blocked_warning)
        self._looper = Looper("flow worker", self._take, poll_interval=settings.poll_interval)
        self._hungry = False
        self._turn = 0
        self._leaving = False
        self._strays: list[Fence] = []
        self._gathering: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        listener.subscribe(TASKS_CHANNEL, lambda _: self._looper.wake())
        # a standby that took over may know of claims that had ended on the one it followed
        listener.on_connected(self.doubt)
        registry.on_lost(self._give_back)

    @property
    def in_flight(self) -> int:
        return len(self._holdings.held)

    def start(self) -> None:
        """Begin to claim; the flows are compiled and the registry runs."""
        self._watchdog.start()
        self._looper.start()

    def wake(self) -> None:
        """Something may be claimed."""
        self._looper.wake()

    async def stop(self, drain_timeout: float) -> None:
        """Claim nothing more; let what runs finish for ``drain_timeout`` seconds, then give the rest back."""
        self._holdings.open = False
        await self._looper.stop()
        for held in self._lanes.take_back():
            self._outcomes.release(held)
        if not await self._outcomes.drained(drain_timeout):
            self.hurry()
            if not await self._outcomes.drained(_LAST_WORDS):
                log.warning("%d tasks are left to others: they could not be given back", self.in_flight)
                self._outcomes.abandon()
        for timer in (self._gathering, self._ticking):
            if timer is not None:
                timer.cancel()
        await self._watchdog.stop()

    def hurry(self) -> None:
        """Give back at once what runs, also while `stop` lets it finish."""
        self._leaving = True
        self._give_back()

    async def _take(self) -> float | None:
        if not self._registry.is_alive():
            return None
        if self._holdings.doubt.is_due:
            if self._holdings.calls:
                return _SOON
            await self._give_back_strays()
        if self._strays:
            strays, self._strays = self._strays, []
            await self._store.give_back(strays, _UNKNOWN_DELAY)
        with self._holdings.reserve(MAX_BATCH) as limit:
            self._hungry = limit == 0
            if self._hungry:
                return self._holdings.doubt.pause()
            try:
                rows = await self._store.claim(self._queues(), limit, self._flows.handlers)
                await self._flows.learn({row.flow_slug for row in rows})
            except (DatabaseUnavailable, psycopg.Error):
                self.doubt()
                raise
            self._begin(rows)
        return 0 if len(rows) == limit else self._holdings.doubt.pause()

    def _begin(self, rows: Iterable[Any]) -> None:
        """Run these claims; the other end of every way on which they come."""
        begun: list[Held] = []
        for row in rows:
            planned = self._flows.find(row.flow_slug, row.step_slug)
            if planned is None:
                log.error("run %s: %s.%s is unknown here", row.run_id, row.flow_slug, row.step_slug)
                self._strays.append((row.run_id, row.step_slug, row.task_index, row.attempt))
                self._looper.wake()
                continue
            begun.append(Held(row, planned))
        self._holdings.held.update(begun)
        if self._leaving:
            for held in begun:
                self._outcomes.release(held)
            return
        self._lanes.put(begun)
        if begun and self._ticking is None:
            self._tick()

    def _queues(self) -> list[str]:
        """Another one first each time, so that a full queue does not starve the next."""
        queues = self._flows.queues
        self._turn = (self._turn + 1) % max(1, len(queues))
        return queues[self._turn :] + queues[: self._turn]

    def claimed(self, rows: list[Any]) -> None:
        """A completion brought these tasks along."""
        self._begin(rows)

    def room(self) -> None:
        """Slots came free; they are gathered for a moment."""
        if self._hungry and self._gathering is None and self._holdings.open:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER, self._gathered)

    def doubt(self) -> None:
        """A call broke off that may have claimed tasks of which nobody here knows."""
        self._holdings.doubt.rise()
        self._looper.wake()

    def delayed(self) -> None:
        """Something was stored that is due later."""
        self._on_delay()

    def stored(self, run_ids: Iterable[UUID]) -> None:
        """Something changed in these runs, which are few."""
        self._on_stored(run_ids)

    def _gathered(self) -> None:
        self._gathering = None
        self._looper.wake()

    def _tick(self) -> None:
        now = time.monotonic()
        for held in self._holdings.held:
            if held.task is not None and now > held.deadline:
                held.cancel(Stop.TIMED_OUT)
        busy = bool(self._holdings.held)
        self._ticking = asyncio.get_running_loop().call_later(_TICK, self._tick) if busy else None

    def _give_back(self) -> None:
        """Go on with nothing; what others have been given already is not ours to give back, which is no harm."""
        for held in self._lanes.take_back():
            self._outcomes.release(held)
        for held in self._holdings.held:
            if held.task is not None:
                held.cancel(Stop.GIVEN_BACK)

    async def _give_back_strays(self) -> None:
        """Give back what the database takes for running here, and is not; no call that claims is under way."""
        with self._holdings.doubt.look():
            rows = await self._store.held()
            known = {held.fence for held in self._holdings.held}
            strays = [tuple(row) for row in rows if tuple(row) not in known]
            if strays:
                log.warning("%d tasks had been claimed in calls that broke off; given back", len(strays))
                await self._store.give_back(strays, 0.0)
