"""Nexus side, before each call: circuit breakers, one for each model at its provider, shared by all workers.

After failures in a row a model is left alone for a while, twice as long each time, 300 seconds at most; then one
call of one worker probes it, and what that comes to closes or opens it for everybody. A vendor's own Retry-After
closes its model for exactly that long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import DatabaseUnavailable, ProviderError, TooManyRequests
from pgnexus.looper import Looper
from pgnexus.nexus.calls.complaints import is_the_requests_own
from pgnexus.nexus.selection import Candidate
from pgnexus.printable import one_line
from pgnexus.providers.provider import Completion
from pgnexus.settings import Settings

log = logging.getLogger(__name__)

_CHANNEL = "pgnexus_breakers"
_PROBE = 60.0  # seconds for which a worker has the right to probe
_PROBE_ELSEWHERE = 1.0  # seconds until one looks again whether another worker's probe came to something
_MOST_COUNTED = 10_000  # models; their names may be the callers' words
_WORTH_SHARING = 0.5  # seconds; a shorter Retry-After is over before the others know


@dataclass(slots=True)
class _Open:
    until: float  # by the loop's clock
    probes: bool  # one call is to find out, before all the others may


class Breakers:
    """Which models are left alone; what this worker learns of them goes to all others."""

    def __init__(self, db: Database, listener: Listener, settings: Settings, instance_id: UUID) -> None:
        self._db = db
        self._instance = {"instance_id": instance_id}
        self._failures_allowed = settings.breaker_failures
        self._seconds = settings.breaker_seconds
        self._in_a_row: dict[Candidate, int] = {}
        self._open: dict[Candidate, _Open] = {}
        self._probing: set[Candidate] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._looper = Looper("breakers", self._read, poll_interval=settings.poll_interval)
        listener.subscribe(_CHANNEL, lambda _: self._looper.wake())

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()
        if self._telling:
            await asyncio.wait(self._telling)

    def open_for(self, candidate: Candidate) -> float | None:
        """Seconds for which nobody asks it, 0 when a probe is due; None when it is closed. Asks nobody."""
        known = self._open.get(candidate)
        if known is None:
            return None
        left = known.until - asyncio.get_running_loop().time()
        if left <= 0 and not known.probes:
            return None
        return max(0.0, left)

    async def wait_for(self, candidate: Candidate) -> float:
        """Seconds for which the model is to be left alone; 0 when it may be called now, if only as a probe."""
        left = self.open_for(candidate)
        if left is None or left > 0:
            return left or 0.0
        if candidate in self._probing:
            return _PROBE_ELSEWHERE
        self._probing.add(candidate)
        granted = False
        try:
            params = self._instance | self._named(candidate) | {"seconds": _PROBE}
            [row] = await self._db.query("probe_breaker", params)
            granted = row.granted
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.warning("%s: whether it may be probed is not known: %s", candidate, one_line(error))
        finally:
            if not granted:
                self._probing.discard(candidate)
        return 0.0 if granted else _PROBE_ELSEWHERE

    def give_up(self, candidate: Candidate) -> None:
        """A call came to nothing that would tell of the vendor: another one may probe."""
        if candidate in self._probing:
            self._probing.discard(candidate)
            self._tell("leave_probe", self._instance | self._named(candidate))

    def hear(self, candidate: Candidate, answer: Completion | ProviderError) -> None:
        """What a call came to."""
        known = self._open.get(candidate)
        probed = known is not None and known.probes
        if isinstance(answer, TooManyRequests) and (answer.retry_after or 0) < _WORTH_SHARING:
            self.give_up(candidate)
            return
        self._probing.discard(candidate)
        if isinstance(answer, Completion) or is_the_requests_own(answer):
            self._in_a_row.pop(candidate, None)
            if probed:
                del self._open[candidate]
                log.warning("%s: answers again, its breaker is closed", candidate)
                self._tell("close_breaker", self._named(candidate))
        elif isinstance(answer, TooManyRequests):
            self._leave_alone(candidate, "rate_limited", answer.retry_after or 0)
        else:
            if len(self._in_a_row) >= _MOST_COUNTED:
                self._in_a_row.clear()
            count = self._in_a_row[candidate] = self._in_a_row.get(candidate, 0) + 1
            if count >= self._failures_allowed or probed:
                self._leave_alone(candidate, "failures", self._seconds)

    def _leave_alone(self, candidate: Candidate, reason: str, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        known = self._open.get(candidate)
        if known is not None and known.until >= now + (0 if reason == "failures" else seconds):
            return  # calls that were under way when it was opened
        self._open[candidate] = _Open(now + seconds, reason == "failures")
        if reason == "failures":
            log.warning("%s: failed %d times in a row, left alone", candidate, self._in_a_row[candidate])
        self._tell("open_breaker", self._named(candidate) | {"reason": reason, "seconds": seconds})

    def _tell(self, query: str, params: dict[str, Any]) -> None:
        task = asyncio.create_task(self._told(self._db.query(query, params)), name=query)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _told(self, query: Coroutine[Any, Any, list[Any]]) -> None:
        try:
            await query
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.warning("a breaker was not told to the other workers: %s", one_line(error))

    async def _read(self) -> float | None:
        """What all workers together know; a row that is gone is a closed breaker."""
        if self._telling:
            await asyncio.wait(self._telling)  # or our own news would be taken for old
        rows = await self._db.query("open_breakers")
        now = asyncio.get_running_loop().time()
        known = {
            Candidate(row.provider, row.model): _Open(now + row.open_for, row.reason == "failures")
            for row in rows
        }
        for candidate in self._open.keys() - known.keys():
            self._in_a_row.pop(candidate, None)
        self._open = known
        return None

    @staticmethod
    def _named(candidate: Candidate) -> dict[str, str]:
        return {"provider": candidate.provider, "model": candidate.model}
