"""Nexus side: LLMRequestWorkflow, validate → route_llm → publish_result → track_metrics.

validate is pure, route_llm is the only step that leaves the database, the last two are the transaction that
ends the run (T3, `Settler`). What a run comes to is a value, a `Settlement`; nothing here raises for a request.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from pgnexus import storable
from pgnexus.errors import InternalFailure, InvalidRequest, ProviderError, RequestCancelled
from pgnexus.messages import LLMRequest, faults
from pgnexus.nexus.books.attempt import Attempt
from pgnexus.nexus.calls.errand import Errand
from pgnexus.nexus.calls.outcome import RouteOutcome
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.savings import Found, Saving, Savings, answer_of
from pgnexus.nexus.selection import Selection
from pgnexus.nexus.settlement import SHARE, Claim, Settlement, failed, succeeded, timed_out
from pgnexus.nexus.streams.chunk_stream import ChunkStream
from pgnexus.nexus.streams.chunks import ChunkWriter
from pgnexus.providers.provider import Delta
from pgnexus.settings import Settings
from pgnexus.telemetry import METERS

log = logging.getLogger(__name__)

FLOW_SLUG = "llm_request_workflow"
_MAY_BE_DEEP = frozenset({"tools", "tool_choice", "response_format"})
_LONGEST_DELAY = 300.0
# seconds before a deadline in which its end is told: past it the caller's side would, which knows of no calls
_TELLING = 0.25


class LLMRequestWorkflow:
    """Brings one claim to its settlement; ``savings`` and ``chunks`` are None where there is no database."""

    def __init__(
        self,
        router: LLMRouter,
        settings: Settings,
        *,
        savings: Savings | None = None,
        chunks: ChunkWriter | None = None,
    ) -> None:
        self._router = router
        self._settings = settings
        self._savings = savings
        self._chunks = chunks

    async def run(self, claim: Claim, calls: list[Attempt]) -> Settlement:
        """validate and route_llm; the settlement is for publish_result and track_metrics.

        ``calls`` is filled as they end: whoever cancels this settles with them.
        """
        started = time.monotonic()
        request = self._validate(claim)
        if isinstance(request, str):
            return failed(claim, "failed", "invalid_request", request)
        left = claim.seconds_left()
        if left is not None and left <= 0:
            return timed_out(claim)
        asking = None if left is None else left - min(_TELLING, left / 10)
        selection = self._router.selection(request)
        saving = Saving.of(request, selection) if selection.refusal is None else None
        found = await self._look(request, saving)
        if saving is not None and found == "follow":
            return Settlement(claim, "park", scope=saving.scope)
        if isinstance(found, Found):
            outcome = await self._given_again(claim, request, found)
        else:
            deadline = None if asking is None else asyncio.get_running_loop().time() + asking
            errand = Errand(request, claim.attempt, deadline, calls, turn=claim.turn not in (None, SHARE))
            outcome = await self._asked(errand, selection)
        latency_ms = round((time.monotonic() - started) * 1000)
        if outcome.held is not None:
            return Settlement(claim, "park", scope=outcome.held.scope, calls=outcome.attempts)
        if outcome.error is None:
            return succeeded(claim, outcome, latency_ms, _saved(saving, outcome))
        rest = None if asking is None else asking - (time.monotonic() - started)
        return self._after_error(claim, outcome, outcome.error, rest, latency_ms)

    @staticmethod
    def release(claim: Claim, calls: list[Attempt]) -> Settlement:
        """Give the claim back untouched; no attempt is counted, but what was called is booked."""
        return Settlement(claim, "release", calls=tuple(calls))

    @staticmethod
    def cancelled(claim: Claim, calls: list[Attempt]) -> Settlement:
        """Its cancellation was told to this worker, which makes sure that it is an end."""
        outcome = RouteOutcome(attempts=tuple(calls)) if calls else None
        return failed(claim, "cancelled", RequestCancelled.type, "cancelled", outcome=outcome)

    @staticmethod
    def broken(claim: Claim, calls: list[Attempt]) -> Settlement:
        """A fault of our own code ends the request, too."""
        words = "a fault in pgnexus itself; its log has the traceback"
        outcome = RouteOutcome(attempts=tuple(calls)) if calls else None
        return failed(claim, "failed", InternalFailure.type, words, outcome=outcome)

    @staticmethod
    def unstorable(settlement: Settlement, reason: str) -> Settlement:
        """What is left to say of an answer that the database refuses."""
        message = f"the answer cannot be stored: {reason}"
        plain = tuple(replace(call, error=None) for call in settlement.calls)
        if plain == settlement.calls and settlement.outcome == "failed":
            log.error("request %s: not in the books: %s", settlement.claim.run_id, plain)
            plain = ()  # it is they that cannot be stored, and the request is to end
        return failed(
            settlement.claim, "failed", "unstorable_answer", message, outcome=RouteOutcome(attempts=plain)
        )

    def _validate(self, claim: Claim) -> LLMRequest | str:
        """The request, or what is wrong with it."""
        if isinstance(claim.input, str):
            return "the message is nested too deep, or has a number too long"
        try:
            request = LLMRequest.model_validate(claim.input)
            _check_depth(claim.input)
            return request
        except ValidationError as error:
            return f"the message is not a request of the wire, version 1: {faults(error)}"
        except InvalidRequest as error:
            return str(error)
        except RecursionError:
            return "the message is nested too deep"

    async def _look(self, request: LLMRequest, saving: Saving | None) -> Found | str:
        if saving is None or self._savings is None:
            return "ask"
        return await self._savings.look(request, saving)

    async def _asked(self, errand: Errand, selection: Selection) -> RouteOutcome:
        """route_llm; what comes of a stream is stored before the outcome is."""
        stream = self._stream(errand.request, errand.attempt)
        if stream is None:
            return await self._router.run(errand, selection)
        errand.on_delta, errand.on_discard = stream.put, stream.discard
        try:
            return await self._router.run(errand, selection)
        finally:
            await stream.flush()

    async def _given_again(self, claim: Claim, request: LLMRequest, found: Found) -> RouteOutcome:
        """An answer that was kept; a stream gets it in one piece."""
        METERS.saved.add(found.how)
        stream = self._stream(request, claim.attempt)
        if stream is not None:
            stream.put(Delta(text=found.completion.text or ""))
            await stream.flush()
        return RouteOutcome(
            completion=found.completion,
            candidate=found.candidate,
            cached=found.how == "cached",
            shared=found.how == "shared",
        )

    def _stream(self, request: LLMRequest, attempt: int) -> ChunkStream | None:
        wanted = request.stream and self._chunks is not None
        return self._chunks.open(request.request_id, attempt) if wanted and self._chunks else None

    def _after_error(
        self, claim: Claim, outcome: RouteOutcome, error: ProviderError, rest: float | None, latency_ms: int
    ) -> Settlement:
        """``rest`` is the seconds that are left to ask in."""
        if rest is not None and rest <= 0:
            return timed_out(claim, outcome, latency_ms)
        if not error.retryable or claim.attempt >= self._settings.max_attempts:
            return failed(claim, "failed", error.type, str(error), error.retryable, outcome, latency_ms)
        delay = outcome.retry_after if outcome.retry_after is not None else self._backoff(claim.attempt)
        if rest is not None and delay >= rest:
            return timed_out(claim, outcome, latency_ms, "its next try would come after its deadline")
        return Settlement(claim, "retry", error=str(error), delay=delay, calls=outcome.attempts)

    def _backoff(self, attempt: int) -> float:
        """Exponential, as pgflow's calculate_retry_delay, capped; with full jitter, so that a crowd comes apart."""
        ceiling: float = min(_LONGEST_DELAY, self._settings.retry_base_delay * 2.0 ** min(attempt, 30))
        return random.uniform(0, ceiling)


def _check_depth(message: dict[str, Any]) -> None:
    """What may be nested deeper than a vendor's JSON can be; plain words, which most messages are, cost no look.

    Raises `InvalidRequest`.
    """
    for name in _MAY_BE_DEEP & message.keys():
        storable.check(message[name], name)
    for number, one in enumerate(message["messages"]):
        if not isinstance(one, dict) or len(one) > 2 or not isinstance(one.get("content"), str):
            storable.check(one, f"messages[{number}]")


def _saved(saving: Saving | None, outcome: RouteOutcome) -> dict[str, object] | None:
    """What T3 keeps of an answer; one that was given again is kept already."""
    if saving is None or outcome.completion is None or outcome.candidate is None or not outcome.attempts:
        return None
    answer = answer_of(outcome.completion, outcome.candidate)
    return {"key": saving.key.hex(), "ttl": saving.ttl, "answer": answer}
