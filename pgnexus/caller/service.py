"""The caller's only door: ask for a completion, wait for it, or come back for it later."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Unpack
from uuid import UUID

from pgnexus import telemetry
from pgnexus.caller.draft import Messages, Options, RequestDraft
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.options import cancels_on_exit, laid_over, to_uuid
from pgnexus.caller.outcome import successful
from pgnexus.caller.request_worker import Accepted
from pgnexus.caller.stored import StoredRequests
from pgnexus.caller.stream import ResultStream
from pgnexus.caller.vision import check_usable
from pgnexus.errors import InvalidRequest, ResultPending
from pgnexus.messages import Complexity, LLMResult, complexity_for


class LLMService(StoredRequests):
    """Durable LLM calls over one `Database`; `pgnexus.open` makes one with all it needs.

    It runs an `LlmResultPoller` of its own unless ``poller`` is False: then another process must.
    """

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

    def _draft(self, complexity_or_model: str, messages: Messages, options: Options) -> RequestDraft:
        self._check_home()
        options.setdefault("instance_id", self.instance_id)
        return RequestDraft.make(complexity_or_model, messages, self._settings, **options)

    async def _check_vision(self, drafts: Sequence[RequestDraft]) -> None:
        if any(draft.any_model_that_sees for draft in drafts):
            check_usable(await self.get_available_models(), self._settings)

    async def _await(
        self, request_id: UUID, future: asyncio.Future[LLMResult], timeout: float | None
    ) -> LLMResult:
        try:
            async with asyncio.timeout(timeout):
                result = await future
        except TimeoutError:
            raise ResultPending(request_id, timeout or 0) from None
        return successful(result)
