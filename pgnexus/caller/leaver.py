"""When a caller leaves before its answer: the request is cancelled, so that no vendor is paid for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from pgnexus.backoff import backoff
from pgnexus.batcher import Batcher
from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds that one who leaves is kept waiting
_TRIES = 20


class Leaver:
    """Cancels requests in tasks of its own: whoever leaves is often being cancelled himself."""

    def __init__(self, db: Database, flushed: Callable[[], Awaitable[None]]) -> None:
        """``flushed`` returns when what was being stored is stored: a request may be under way to the database."""
        self._db = db
        self._flushed = flushed
        # many may leave at once
        self._batcher: Batcher[UUID, None] = Batcher(self._cancel_all)
        self._tasks: set[asyncio.Task[None]] = set()

    async def leave(self, request_id: UUID) -> None:
        """Cancel the request; returns when that is done, or after five seconds while it is still tried."""
        await asyncio.wait([self.begin(request_id)], timeout=_PATIENCE)

    def begin(self, request_id: UUID) -> asyncio.Task[None]:
        """Cancel the request without waiting for it."""
        task = asyncio.create_task(self._cancel(request_id), name=f"cancel request {request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Let what is under way be done, for five seconds at most."""
        if self._tasks:
            _, late = await asyncio.wait(tuple(self._tasks), timeout=_PATIENCE)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _cancel(self, request_id: UUID) -> None:
        await self._flushed()
        for tries in range(_TRIES):
            try:
                await self._batcher.submit(request_id)
                return
            except DatabaseUnavailable:
                await asyncio.sleep(backoff(tries))
            except Exception:
                log.exception(
                    "request %s: its caller has left, but it cannot be cancelled; it goes on", request_id
                )
                return
        log.warning("request %s: its caller has left, but the database is away; it goes on", request_id)

    async def _cancel_all(self, request_ids: list[UUID]) -> Sequence[None]:
        await self._db.query("cancel", {"request_ids": sorted(request_ids)})
        return [None] * len(request_ids)
