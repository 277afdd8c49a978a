"""Where callers sleep: who waits for which request in this process, and what wakes them.

A waiter subscribes first, then looks, then sleeps. It is woken by this process's own poller, by a NOTIFY of
another process's, or by the safety net that looks every poll_interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from pgnexus.caller.results import JobResult
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import ServiceMisused
from pgnexus.looper import Looper
from pgnexus.messages import DONE_CHANNEL, LLMResult

_LOOK_AT_ONCE = 1000
_NAME_AT_MOST = 2000


class Waiters:
    """The requests that somebody in this process waits for."""

    def __init__(self, db: Database, listener: Listener, *, poll_interval: float) -> None:
        self._db = db
        self._poll_interval = poll_interval
        self._waiting: dict[UUID, set[asyncio.Future[LLMResult]]] = {}
        self._named: set[UUID] = set()
        self._look_at_all = False
        self._looked_at_all = float("-inf")
        self._looper = Looper("waiters", self._look, poll_interval=poll_interval)
        listener.subscribe(DONE_CHANNEL, self._notified)

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        """Whoever still waits here is told that nobody will wake him."""
        await self._looper.stop()
        for request_id, futures in self._waiting.items():
            for future in futures:
                if not future.done():
                    future.set_exception(
                        ServiceMisused(
                            f"this LLMService was stopped while somebody waited for request {request_id}, which goes on"
                        )
                    )

    @contextmanager
    def subscribe(self, request_id: UUID) -> Iterator[asyncio.Future[LLMResult]]:
        """A future of the request's result; subscribe before the request can end, or `look` afterwards."""
        future: asyncio.Future[LLMResult] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(request_id, set()).add(future)
        try:
            yield future
        finally:
            others = self._waiting.get(request_id, set())
            others.discard(future)
            if not others:
                self._waiting.pop(request_id, None)

    def look(self, request_id: UUID) -> None:
        """See whether the request has ended already."""
        self._named.add(request_id)
        self._looper.wake()

    def deliver(self, result: LLMResult) -> None:
        """Wake whoever waits for this request."""
        for future in self._waiting.pop(result.request_id, ()):
            if not future.done():
                future.set_result(result)

    def wanted(self) -> list[UUID] | None:
        """Whose results are to be handed out; None for all, where the names are more than they save."""
        return list(self._waiting) if len(self._waiting) <= _NAME_AT_MOST else None

    def is_waiting(self, request_id: UUID) -> bool:
        return request_id in self._waiting

    def _notified(self, payload: str) -> None:
        if not self._waiting:
            return
        if payload:
            named = {UUID(text) for text in payload.split(",")} & self._waiting.keys()
            self._named |= named
        else:  # some were not told: the listener was away, or too many ended at once
            self._look_at_all = True
        if self._named or self._look_at_all:
            self._looper.wake()

    async def _look(self) -> float | None:
        # woken with names: only those; now and then, or after a gap in listening: everybody
        names, self._named = self._named & self._waiting.keys(), set()
        now = asyncio.get_running_loop().time()
        if self._look_at_all or not names or now - self._looked_at_all >= self._poll_interval:
            names, self._look_at_all, self._looked_at_all = set(self._waiting), False, now
        ids = list(names)
        try:
            for start in range(0, len(ids), _LOOK_AT_ONCE):
                for found in await JobResult.find(self._db, ids[start : start + _LOOK_AT_ONCE], ended=True):
                    self.deliver(found.to_result())
        except BaseException:
            self._named |= names
            raise
        return None
