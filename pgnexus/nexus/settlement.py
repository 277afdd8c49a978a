"""Nexus side, from T2 to T3: a task that this worker holds, and how it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from pydantic_core import to_json

from pgnexus.errors import RequestTimeout
from pgnexus.nexus.books.attempt import Attempt
from pgnexus.nexus.calls.outcome import RouteOutcome
from pgnexus.storable import clean

SHARE = "share"  # the scope of the line for those whom others' floods would crowd out

_ALWAYS_COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that this worker holds: ``attempt`` is the fence to end it with."""

    run_id: UUID
    step: str
    attempt: int
    input: dict[str, Any] | str = field(repr=False)  # text: JSON that is nested too deep to be read
    expires_at: float | None  # by time.monotonic()
    turn: str | None = None  # the scope in whose line it had waited, when its turn came
    waited: float | None = None  # seconds on its lane, when it is taken from there

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
    saving: dict[str, Any] | None = None  # of a success: what is kept of the answer

    def to_item(self) -> str:
        """The JSON text for nexus.settle."""
        claim = self.claim
        item: dict[str, Any] = {
            "run_id": str(claim.run_id),
            "step": claim.step,
            "attempt": claim.attempt,
            "outcome": self.outcome,
            "delay": self.delay,
            "calls": [_call(call) for call in self.calls],
        }
        for name in ("result", "details", "error", "scope", "saving"):
            if (value := getattr(self, name)) is not None:
                item[name] = value
        names = ("priority", "deadline") if self.outcome == "park" else ()
        for name in ("reply_to", "complexity", "task_type", "agent_id", *names):
            if (text := claim.told(name)) is not None:
                item[name] = text
        return to_json(item, inf_nan_mode="null").decode()


def _call(call: Attempt) -> dict[str, Any]:
    """One row of the books; what is usual is left out."""
    told: dict[str, Any] = {
        "call": call.number,
        "provider": call.provider,
        "model": call.model,
        "outcome": call.outcome,
        "started_at": call.started_at,
        "duration_ms": call.duration_ms,
        "prompt_tokens": call.usage.prompt_tokens,
        "completion_tokens": call.usage.completion_tokens,
        "cost": call.cost,
    }
    for name in ("cached_tokens", "cache_write_tokens", "reasoning_tokens"):
        if count := getattr(call.usage, name):
            told[name] = count
    if call.error is not None:
        told["error"] = call.error
    if call.estimated:
        told["estimated"] = True
    if call.charges:
        told["charges"] = [charge.to_json() for charge in call.charges]
    return told


def succeeded(
    claim: Claim, outcome: RouteOutcome, latency_ms: int, saving: dict[str, Any] | None = None
) -> Settlement:
    """The whole answer; ``saving`` is what may be kept of it."""
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
    return Settlement(claim, "success", result=result, saving=saving, calls=outcome.attempts)


def failed(
    claim: Claim,
    status: str,
    kind: str,
    message: str,
    retryable: bool = False,
    outcome: RouteOutcome | None = None,
    latency_ms: int | None = None,
) -> Settlement:
    """An end without success; ``outcome`` has the calls that were made all the same."""
    message = clean(message)[0]
    details = _report(claim, status, outcome, latency_ms)
    details["error"] = {"type": kind, "message": message, "retryable": retryable}
    booked = () if outcome is None else outcome.attempts
    return Settlement(claim, "failed", details=details, error=f"{kind}: {message}", calls=booked)


def timed_out(
    claim: Claim,
    outcome: RouteOutcome | None = None,
    latency_ms: int | None = None,
    why: str = "its deadline passed before an answer came",
) -> Settlement:
    """An end by its deadline."""
    last = f"; the last error was: {outcome.error}" if outcome is not None and outcome.error else ""
    return failed(claim, "timeout", RequestTimeout.type, why + last, True, outcome, latency_ms)


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
        report["usage"] = {name: count for name, count in outcome.usage if count or name in _ALWAYS_COUNTED}
        for name in ("estimated", "cached", "shared"):
            if getattr(outcome, name):
                report[name] = True
        if outcome.cost is not None:
            report["cost"] = format(outcome.cost, "f")
        if outcome.candidate is not None:
            report["provider"] = outcome.candidate.provider
            report["model"] = outcome.completion.model if outcome.completion else outcome.candidate.model
    return report
