"""Nexus side: LLMRequestWorkflow, validate → route_llm → publish_result → track_metrics.

validate is pure, route_llm is the only step that leaves the database, the last two are the transaction that
ends the run (T3, `Settler`). What a run comes to is a value, a `Settlement`; nothing here raises for a request.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import to_json

from pgnexus.errors import InternalFailure, ProviderError, RequestCancelled, RequestTimeout
from pgnexus.messages import LLMRequest, faults
from pgnexus.nexus.router import Attempt, LLMRouter, RouteOutcome
from pgnexus.settings import Settings
from pgnexus.storable import clean

FLOW_SLUG = "llm_request_workflow"
_LONGEST_DELAY = 300.0
# seconds before a deadline in which its end is told: past it the caller's side would, which knows of no calls
_TELLING = 0.25


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that this worker holds: ``attempt`` is the fence to end it with."""

    run_id: UUID
    step: str
    attempt: int
    input: dict[str, Any] | str = field(repr=False)  # text: JSON that is nested too deep to be read
    expires_at: float | None  # by time.monotonic()
    turn: str | None = None  # the scope in whose line it had waited, when its turn came

    def told(self, name: str) -> str | None:
        """A field of the request, if it is a text, also of one that is not valid."""
        value = self.input.get(name) if isinstance(self.input, dict) else None
        return value if isinstance(value, str) else None

    def seconds_left(self) -> float | None:
        return None if self.expires_at is None else self.expires_at - time.monotonic()


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a claim ends; the fields are those of an item of nexus.settle."""

    claim: Claim
    outcome: Literal["success", "failed", "retry", "release", "park"]
    result: dict[str, Any] | None = None
    details: dict[str, Any] | None = None
    error: str | None = None
    delay: float = 0.0
    calls: tuple[Attempt, ...] = ()
    scope: str | None = None  # of a park: what it waits for

    def to_item(self) -> str:
        """The JSON text for nexus.settle."""
        claim = self.claim
        item: dict[str, Any] = {
            "run_id": str(claim.run_id),
            "step": claim.step,
            "attempt": claim.attempt,
            "outcome": self.outcome,
            "delay": self.delay,
            "calls": [_call(number, call) for number, call in enumerate(self.calls, 1)],
        }
        for name in ("result", "details", "error", "scope"):
            if (value := getattr(self, name)) is not None:
                item[name] = value
        for name in ("reply_to", "complexity", "task_type", "agent_id", "priority"):
            if (text := claim.told(name)) is not None:
                item[name] = text
        return to_json(item, inf_nan_mode="null").decode()


def _call(number: int, call: Attempt) -> dict[str, Any]:
    return {
        "call": number,
        "provider": call.provider,
        "model": call.model,
        "outcome": call.outcome,
        "started_at": call.started_at,
        "duration_ms": call.duration_ms,
        "prompt_tokens": call.usage.prompt_tokens,
        "completion_tokens": call.usage.completion_tokens,
        "cached_tokens": call.usage.cached_tokens,
        "cost": call.cost,
    }


class LLMRequestWorkflow:
    """Brings one claim to its settlement."""

    def __init__(self, router: LLMRouter, settings: Settings) -> None:
        self._router = router
        self._settings = settings

    async def run(self, claim: Claim) -> Settlement:
        """validate and route_llm; the settlement is for publish_result and track_metrics."""
        started = time.monotonic()
        request = self._validate(claim)
        if isinstance(request, str):
            return _failed(claim, "failed", "invalid_request", request)
        left = claim.seconds_left()
        if left is not None and left <= 0:
            return _timed_out(claim)
        asking = None if left is None else left - min(_TELLING, left / 10)
        outcome = await self._router.route(request, timeout=asking)
        latency_ms = round((time.monotonic() - started) * 1000)
        if outcome.error is None:
            return _succeeded(claim, outcome, latency_ms)
        rest = None if asking is None else asking - (time.monotonic() - started)
        return self._after_error(claim, outcome, outcome.error, rest, latency_ms)

    @staticmethod
    def release(claim: Claim) -> Settlement:
        """Give the claim back untouched; no attempt is counted."""
        return Settlement(claim, "release")

    @staticmethod
    def cancelled(claim: Claim) -> Settlement:
        """Its cancellation was told to this worker, which makes sure that it is an end."""
        return _failed(claim, "cancelled", RequestCancelled.type, "cancelled")

    @staticmethod
    def broken(claim: Claim) -> Settlement:
        """A fault of our own code ends the request, too."""
        return _failed(
            claim, "failed", InternalFailure.type, "a fault in pgnexus itself; its log has the traceback"
        )

    @staticmethod
    def unstorable(settlement: Settlement, reason: str) -> Settlement:
        """What is left to say of an answer that the database refuses."""
        message = f"the answer cannot be stored: {reason}"
        return _failed(settlement.claim, "failed", "unstorable_answer", message, calls=settlement.calls)

    def _validate(self, claim: Claim) -> LLMRequest | str:
        """The request, or what is wrong with it."""
        if isinstance(claim.input, str):
            return "the message is nested too deep, or has a number too long"
        try:
            return LLMRequest.model_validate(claim.input)
        except ValidationError as error:
            return f"the message is not a request of the wire, version 1: {faults(error)}"
        except RecursionError:
            return "the message is nested too deep"

    def _after_error(
        self, claim: Claim, outcome: RouteOutcome, error: ProviderError, rest: float | None, latency_ms: int
    ) -> Settlement:
        """``rest`` is the seconds that are left to ask in."""
        if rest is not None and rest <= 0:
            return _timed_out(claim, outcome, latency_ms)
        if not error.retryable or claim.attempt >= self._settings.max_attempts:
            return _failed(claim, "failed", error.type, str(error), error.retryable, outcome, latency_ms)
        delay = outcome.retry_after if outcome.retry_after is not None else self._backoff(claim.attempt)
        if rest is not None and delay >= rest:
            return _timed_out(claim, outcome, latency_ms, "its next try would come after its deadline")
        return Settlement(claim, "retry", error=str(error), delay=delay, calls=outcome.attempts)

    def _backoff(self, attempt: int) -> float:
        """Exponential, as pgflow's calculate_retry_delay, capped; jittered, so that a crowd comes apart."""
        ceiling: float = min(_LONGEST_DELAY, self._settings.retry_base_delay * 2.0 ** min(attempt, 30))
        return random.uniform(ceiling / 2, ceiling)


def _succeeded(claim: Claim, outcome: RouteOutcome, latency_ms: int) -> Settlement:
    completion = outcome.completion
    assert completion is not None
    # The text goes once, as response; what else the message has goes beside it.
    rest = {
        key: value
        for key, value in completion.message.items()
        if value is not None and key != "role" and not (key == "content" and value == completion.text)
    }
    result = _report(claim, "success", outcome, latency_ms)
    result["response"] = completion.text
    if rest:
        result["message"] = {"role": "assistant", **rest}
    result["finish_reason"] = completion.finish_reason
    if completion.mended:
        result["mended"] = True
    return Settlement(claim, "success", result=result, calls=outcome.attempts)


def _failed(
    claim: Claim,
    status: str,
    kind: str,
    message: str,
    retryable: bool = False,
    outcome: RouteOutcome | None = None,
    latency_ms: int | None = None,
    *,
    calls: tuple[Attempt, ...] = (),
) -> Settlement:
    message = clean(message)[0]
    details = _report(claim, status, outcome, latency_ms)
    details["error"] = {"type": kind, "message": message, "retryable": retryable}
    booked = outcome.attempts if outcome is not None else calls
    return Settlement(claim, "failed", details=details, error=f"{kind}: {message}", calls=booked)


def _timed_out(
    claim: Claim,
    outcome: RouteOutcome | None = None,
    latency_ms: int | None = None,
    why: str = "its deadline passed before an answer came",
) -> Settlement:
    last = f"; the last error was: {outcome.error}" if outcome is not None and outcome.error else ""
    return _failed(claim, "timeout", RequestTimeout.type, why + last, True, outcome, latency_ms)


def _report(
    claim: Claim, status: str, outcome: RouteOutcome | None, latency_ms: int | None
) -> dict[str, Any]:
    """What every result says; see docs/wire.md."""
    report: dict[str, Any] = {
        "request_id": str(claim.run_id),
        "status": status,
        "timestamp": datetime.now(UTC),
        "attempts": 0 if outcome is None else len(outcome.attempts),
    }
    if (agent_id := claim.told("agent_id")) is not None:
        report["agent_id"] = agent_id
    if latency_ms is not None:
        report["latency_ms"] = latency_ms
    if outcome is not None:
        report["usage"] = outcome.usage.model_dump()
        if outcome.cost is not None:
            report["cost"] = format(outcome.cost, "f")
        if outcome.candidate is not None:
            report["provider"] = outcome.candidate.provider
            report["model"] = outcome.completion.model if outcome.completion else outcome.candidate.model
    return report
