"""Under the caller's door: its parts, started and stopped together, and what can be asked of stored requests."""

from __future__ import annotations

import asyncio
import os
from typing import Unpack
from uuid import UUID, uuid4

from pgnexus.caller.leaver import Leaver
from pgnexus.caller.options import to_uuid
from pgnexus.caller.progress import RequestProgress
from pgnexus.caller.queue_health import QueueHealth
from pgnexus.caller.request_worker import Accepted, LlmRequestWorker
from pgnexus.caller.result_poller import LlmResultPoller
from pgnexus.caller.results import Filters, JobResult
from pgnexus.caller.retention import parts
from pgnexus.caller.stream import Streams
from pgnexus.caller.waiters import Waiters
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.errors import InvalidSettings, ServiceMisused, UnknownRequest
from pgnexus.messages import ModelInfo
from pgnexus.pruning import Pruner
from pgnexus.settings import Settings


class StoredRequests:
    """What `LLMService` knows of requests that are stored, in this process or another."""

    def __init__(
        self, db: Database, listener: Listener, notifier: Notifier, settings: Settings, *, poller: bool = True
    ) -> None:
        self._db = db
        self._settings = settings
        self._worker = LlmRequestWorker(db, notifier)
        self._waiters = Waiters(db, listener, poll_interval=settings.poll_interval)
        self._leaver = Leaver(db, self._worker.flushed)
        self._streams = Streams(
            db, listener, self._waiters, self._leaver, poll_interval=settings.poll_interval
        )
        self._poller = LlmResultPoller(db, listener, notifier, settings, self._waiters) if poller else None
        self._pruner = Pruner(db, "results", parts(settings)) if poller else None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._lease = {"lease": settings.worker_lease}
        self.instance_id = uuid4()  # this caller in ``job_results``

    @property
    def database(self) -> Database:
        """What it works on."""
        return self._db

    async def start(self) -> None:
        """Begin; raises `InvalidSettings` when the queue of results does not exist."""
        queue = self._settings.reply_to
        if self._poller is not None and not await self._db.query("pgmq_queue_exists", {"queue": queue}):
            raise InvalidSettings(
                f"reply_to {queue!r} names no queue; create it with select nexus_api.create_queue('{queue}')"
            )
        await self._worker.start()
        self._home = (os.getpid(), asyncio.get_running_loop())
        self._waiters.start()
        self._streams.start()
        if self._poller is not None:
            self._poller.start()
        if self._pruner is not None:
            self._pruner.start()

    async def stop(self) -> None:
        """Store what was asked, then stop; nobody here is told of later results."""
        if self._home is None:
            return
        self._home = None
        await self._worker.close()
        await self._leaver.close()
        if self._pruner is not None:
            await self._pruner.stop()
        if self._poller is not None:
            await self._poller.stop()
        await self._streams.stop()
        await self._waiters.stop()

    async def job_result(self, request_id: UUID | str) -> JobResult:
        """The stored row of a request; raises `UnknownRequest`."""
        self._check_home()
        stored = await JobResult.get(self._db, to_uuid(request_id))
        if stored is None:
            raise UnknownRequest(request_id)
        return stored

    async def progress(self, request_id: UUID | str) -> RequestProgress | None:
        """How far a request has come; None when nobody has taken it up, or when it has ended."""
        self._check_home()
        return await RequestProgress.read(self._db, to_uuid(request_id))

    async def search(self, **filters: Unpack[Filters]) -> list[JobResult]:
        """Stored requests, the newest first; the filters are those of `JobResult.search`."""
        self._check_home()
        return await JobResult.search(self._db, **filters)

    async def cancel(self, request_id: UUID | str) -> bool:
        """Cancel a request; a call under way is given up. False when it had ended before."""
        self._check_home()
        if await self._db.query("cancel", {"request_ids": [to_uuid(request_id)]}):
            return True
        await self.job_result(request_id)  # to say so when there is none
        return False

    async def get_available_models(self) -> list[ModelInfo]:
        """The models that the live nexus instances know, and whether each can be used now."""
        self._check_home()
        return [ModelInfo(*row) for row in await self._db.query("available_models", self._lease)]

    async def live_instances(self) -> int:
        """How many nexus instances are alive."""
        self._check_home()
        [row] = await self._db.query("live_instances", self._lease)
        return int(row.instances)

    async def queue_metrics(self) -> QueueHealth:
        """Depth and age of every queue, requests in flight, and the rate and latency of the last minutes."""
        self._check_home()
        return await QueueHealth.read(self._db, self._settings.worker_lease)

    def _expect(self, accepted: Accepted) -> None:
        if accepted.status == "scheduled" and self._poller is not None:
            self._poller.expect()

    def _check_home(self) -> None:
        if self._home is None:
            raise ServiceMisused(
                "this LLMService is not running: start it, or use `async with pgnexus.open()`"
            )
        pid, loop = self._home
        if pid != os.getpid():
            raise ServiceMisused("this LLMService was started before a fork; open one in each process")
        if loop is not asyncio.get_running_loop():
            raise ServiceMisused("this LLMService was started in another event loop; open one in each")
