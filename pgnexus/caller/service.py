"""The caller's only door: ask for a completion, wait for it, or come back for it later."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Unpack
from uuid import UUID, uuid4

from pgnexus import telemetry
from pgnexus.caller.draft import Messages, Options, RequestDraft
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.leaver import Leaver
from pgnexus.caller.options import cancels_on_exit, laid_over, to_uuid
from pgnexus.caller.outcome import successful
from pgnexus.caller.progress import RequestProgress
from pgnexus.caller.queue_health import QueueHealth
from pgnexus.caller.request_worker import Accepted, LlmRequestWorker
from pgnexus.caller.result_poller import LlmResultPoller
from pgnexus.caller.results import Filters, JobResult
from pgnexus.caller.stream import ResultStream, Streams
from pgnexus.caller.vision import check_usable
from pgnexus.caller.waiters import Waiters
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.errors import (
    InvalidRequest,
    InvalidSettings,
    ResultPending,
    ServiceMisused,
    UnknownRequest,
)
from pgnexus.messages import Complexity, LLMResult, ModelInfo, complexity_for
from pgnexus.settings import Settings


class LLMService:
    """Durable LLM calls over one `Database`; `pgnexus.open` makes one with all it needs.

    It runs an `LlmResultPoller` of its own unless ``poller`` is False: then another process must.
    """

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
        self._home = (os.getpid(), asyncio.get_running_loop())
        self._waiters.start()
        self._streams.start()
        if self._poller is not None:
            self._poller.start()

    async def stop(self) -> None:
        """Store what was asked, then stop; nobody here is told of later results."""
        if self._home is None:
            return
        self._home = None
        await self._worker.close()
        await self._leaver.close()
        if self._poller is not None:
            await self._poller.stop()
        await self._streams.stop()
        await self._waiters.stop()

    async def call(
        self,
        complexity_or_model: str,
        messages: Messages,
        *,
        connection: None = None,
        cancel_on_exit: bool | None = None,
        **options: Unpack[Options],
    ) -> LLMResult:
        """Ask and wait for the answer.

        ``complexity_or_model`` is ``simple``, ``medium``, ``complex`` or ``auto``, or a model's name; ``messages``
        a text or a list in the form of OpenAI's chat completions. Raises `InvalidRequest` before anything is stored,
        a `RequestError` when the request ended without success, `DatabaseUnavailable`.

        When the waiting task is cancelled the request is cancelled, too, if nobody can come back for its answer: with
        neither ``request_id`` nor ``idempotency_key``. ``cancel_on_exit`` says so in any case, or in none.
        """
        if connection is not None:
            raise InvalidRequest("connection: a call cannot wait inside a transaction; enqueue there instead")
        cancels = cancels_on_exit(cancel_on_exit, options)
        with telemetry.call(complexity_or_model, options) as watched:
            return watched.arrived(await self._call(complexity_or_model, messages, options, cancels))

    async def _call(
        self, complexity_or_model: str, messages: Messages, options: Options, cancels: bool
    ) -> LLMResult:
        request_id: UUID | None = None
        try:
            with ExitStack() as subscribed:
                with telemetry.send(options):
                    draft = self._draft(complexity_or_model, messages, options)
                    await self._check_vision([draft])
                    request_id = draft.request_id
                    future = subscribed.enter_context(self._waiters.subscribe(request_id))
                    accepted = await self._worker.enqueue_llm_request(draft)
                if accepted.created:
                    self._expect(accepted)
                    return await self._await(request_id, future, draft.patience)
            request_id = accepted.request_id
            return await self.wait(request_id, timeout=draft.patience)
        except asyncio.CancelledError:
            if cancels and request_id is not None:
                await self._leaver.leave(request_id)
            raise

    async def call_with_prompt(
        self,
        complexity_or_model: str,
        prompt: str,
        *,
        cancel_on_exit: bool | None = None,
        **options: Unpack[Options],
    ) -> LLMResult:
        """`call` with one user message."""
        messages = [{"role": "user", "content": prompt}]
        return await self.call(complexity_or_model, messages, cancel_on_exit=cancel_on_exit, **options)

    async def call_with_system(
        self,
        complexity_or_model: str,
        system: str,
        prompt: str,
        *,
        cancel_on_exit: bool | None = None,
        **options: Unpack[Options],
    ) -> LLMResult:
        """`call` with a system message before the user's."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        return await self.call(complexity_or_model, messages, cancel_on_exit=cancel_on_exit, **options)

    def stream(
        self,
        complexity_or_model: str,
        messages: Messages,
        *,
        connection: None = None,
        cancel_on_exit: bool | None = None,
        **options: Unpack[Options],
    ) -> ResultStream:
        """Ask, and read the answer while it comes; see `ResultStream`. The arguments are those of `call`.

        Nothing is stored before the first chunk is asked for. Raises `InvalidRequest` at once.
        """
        if connection is not None:
            raise InvalidRequest(
                "connection: a stream cannot wait inside a transaction; enqueue there instead"
            )
        cancels = cancels_on_exit(cancel_on_exit, options)
        options["stream"] = True
        sending = telemetry.send(options)
        draft = self._draft(complexity_or_model, messages, options)

        async def start() -> Accepted:
            self._check_home()
            with sending:
                await self._check_vision([draft])
                accepted = await self._worker.enqueue_llm_request(draft)
            self._expect(accepted)
            return accepted

        return self._streams.read(start, draft.request_id, 0, draft.patience, cancels)

    def resume(
        self,
        request_id: UUID | str,
        *,
        after: int = 0,
        timeout: float | None = None,
        cancel_on_exit: bool = False,
    ) -> ResultStream:
        """Read a stored request's answer from the chunk after number ``after``, here or in another process.

        Leaving it cancels nothing, unless ``cancel_on_exit`` is set. Iterating raises `UnknownRequest`, too, and
        `ResultPending` after ``timeout`` seconds.
        """
        self._check_home()
        if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 2**31:
            raise InvalidRequest(f"after: {after!r:.100} is not the number of a chunk")
        known = to_uuid(request_id)

        async def start() -> Accepted:
            stored = await self.job_result(known)
            return Accepted(known, stored.status, created=False)

        return self._streams.read(start, known, after, timeout, cancel_on_exit)

    async def enqueue(
        self,
        complexity_or_model: str,
        messages: Messages,
        *,
        connection: Any = None,
        **options: Unpack[Options],
    ) -> RequestHandle:
        """Store the request and return at once.

        With ``connection`` (psycopg, asyncpg or SQLAlchemy) it joins the transaction open there: commit
        and the request is accepted, roll back and it never was.
        """
        with telemetry.send(options):
            draft = self._draft(complexity_or_model, messages, options)
            await self._check_vision([draft])
            accepted = await self._worker.enqueue_llm_request(draft, connection=connection)
        self._expect(accepted)
        return RequestHandle(self, accepted.request_id, created=accepted.created)

    async def enqueue_many(
        self, requests: Sequence[Mapping[str, Any]], *, connection: Any = None, **options: Unpack[Options]
    ) -> list[RequestHandle]:
        """Store many requests, a thousand a round trip; each thousand is accepted as a whole or not at all.

        Each request is a mapping of ``messages``, ``complexity`` or ``model``, and options, which are laid over
        those given here.
        """
        with telemetry.send(options) as watched:
            drafts = []
            for number, request in enumerate(requests):
                try:
                    drafts.append(self._draft(*laid_over(options, request)))
                except InvalidRequest as error:
                    raise InvalidRequest(f"requests[{number}]: {error}") from error
            watched.set({"messaging.batch.message_count": len(drafts)})
            await self._check_vision(drafts)
            accepted = await self._worker.enqueue_llm_requests(drafts, connection=connection)
        for one in accepted:
            self._expect(one)
        return [RequestHandle(self, one.request_id, created=one.created) for one in accepted]

    def handle(self, request_id: UUID | str) -> RequestHandle:
        """The handle of a request that was stored before, in this process or another."""
        return RequestHandle(self, to_uuid(request_id), created=False)

    async def wait(self, request_id: UUID | str, *, timeout: float | None = None) -> LLMResult:
        """Wait for a stored request's result; see `RequestHandle.result`. Raises `UnknownRequest`, too."""
        self._check_home()
        request_id = to_uuid(request_id)
        with telemetry.wait(request_id) as watched, self._waiters.subscribe(request_id) as future:
            stored = await self.job_result(request_id)
            if stored.ended:
                return watched.arrived(successful(stored.to_result()))
            return watched.arrived(await self._await(request_id, future, timeout))

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

    async def retry(self, request_id: UUID | str) -> RequestHandle:
        """Ask again what a request that has ended asked: a new request, with ``retry_of``."""
        stored = await self.job_result(request_id)
        if not stored.ended:
            raise InvalidRequest(
                f"request {request_id} is {stored.status}; only one that has ended can be retried"
            )
        if stored.input is None:
            raise InvalidRequest(f"request {request_id} was not asked from here; its input is not stored")
        asked = {name: value for name, value in stored.input.items() if name != "traceparent"}
        with telemetry.send(asked):
            draft = RequestDraft.again(asked, stored.request_id, stored.workflow, self._settings)
            accepted = await self._worker.enqueue_llm_request(draft)
        return RequestHandle(self, accepted.request_id, created=accepted.created)

    @staticmethod
    def determine_complexity_for_task(task_type: str) -> Complexity:
        """The complexity that a task type stands for; ``medium`` for unknown ones."""
        return complexity_for(task_type)

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

    def _draft(self, complexity_or_model: str, messages: Messages, options: Options) -> RequestDraft:
        self._check_home()
        options.setdefault("instance_id", self.instance_id)
        return RequestDraft.make(complexity_or_model, messages, self._settings, **options)

    async def _check_vision(self, drafts: Sequence[RequestDraft]) -> None:
        if any(draft.any_model_that_sees for draft in drafts):
            check_usable(await self.get_available_models(), self._settings)

    def _expect(self, accepted: Accepted) -> None:
        if accepted.status == "scheduled" and self._poller is not None:
            self._poller.expect()

    async def _await(
        self, request_id: UUID, future: asyncio.Future[LLMResult], timeout: float | None
    ) -> LLMResult:
        try:
            async with asyncio.timeout(timeout):
                result = await future
        except TimeoutError:
            raise ResultPending(request_id, timeout or 0) from None
        return successful(result)

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
