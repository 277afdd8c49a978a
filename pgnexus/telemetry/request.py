"""Nexus side, around one request in a worker: its span, below the caller's, and what is counted of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from pgnexus.telemetry import tracing
from pgnexus.telemetry.meters import METERS
from pgnexus.telemetry.queue import process_attributes, queue_of

_RETURNED: Final = ("retry", "park", "release", "lost")

_current: ContextVar[WatchedRequest | None] = ContextVar("pgnexus_request", default=None)


def current_request() -> WatchedRequest | None:
    """The request that this task serves."""
    return _current.get()


def request(run_id: UUID, attempt: int, input: Any, *, waited: float | None = None) -> WatchedRequest:
    """Watch one request in a worker; ``input`` is its message, ``waited`` the seconds since it could be taken."""
    return WatchedRequest(run_id, attempt, input if isinstance(input, Mapping) else {}, waited)


class WatchedRequest:
    """One request in a worker, as `request` makes it."""

    def __init__(self, run_id: UUID, attempt: int, message: Mapping[str, Any], waited: float | None) -> None:
        self._lane = queue_of(message.get("priority"))
        self._waited = waited
        self._outcome = "lost"
        self._asked: tuple[str, str] | None = None
        self._start = time.monotonic()
        self._token: Token[WatchedRequest | None] | None = None
        self.span = tracing.SILENT
        if tracing.is_active():
            traceparent = message.get("traceparent")
            self.span = tracing.start(
                f"process {self._lane}",
                "consumer",
                process_attributes(run_id, attempt, self._lane, message),
                remote=traceparent if isinstance(traceparent, str) else None,
                is_remote=True,
            )

    def __enter__(self) -> Self:
        self.span.__enter__()
        self._token = _current.set(self)
        METERS.in_flight.add()
        METERS.taken.add(self._lane)
        if self._waited is not None:
            METERS.queue_time.observe(self._lane, value=max(0.0, self._waited))
        return self

    def asks(self, candidate: tuple[str, str]) -> bool | None:
        """A call begins: None for the first one, True when it asks the same candidate again, False for another."""
        before, self._asked = self._asked, candidate
        return None if before is None else before == candidate

    def settled(self, outcome: str, report: Mapping[str, Any] | None = None) -> None:
        """How it ends: success or failed, with what is told of it, or retry, park, release."""
        status = str((report or {}).get("status") or outcome)
        self._outcome = outcome if outcome in _RETURNED else status
        if not self.span.is_recording:
            return
        self.span.set({"pgnexus.outcome": self._outcome, **reported(report or {})})
        if outcome == "failed":
            error = (report or {}).get("error") or {}
            self.span.fail(str(error.get("type") or status))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        METERS.in_flight.add(by=-1)
        if self._outcome in _RETURNED:
            METERS.returned.add(self._outcome)
        else:
            METERS.settled.add(self._outcome)
            METERS.request_time.observe(self._outcome, value=time.monotonic() - self._start)
        if self._token is not None:
            _current.reset(self._token)
        self.span.__exit__(kind, error, traceback)


def reported(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says, as attributes. Tokens have names of our own: those of the GenAI conventions are for the
    spans of the calls, or whoever sums them up would count them twice.
    """
    usage = report.get("usage") or {}
    cost = report.get("cost")
    return {
        "pgnexus.status": report.get("status"),
        "pgnexus.provider": report.get("provider"),
        "pgnexus.model": report.get("model"),
        "pgnexus.attempts": report.get("attempts"),
        "pgnexus.cached": report.get("cached") or None,
        "pgnexus.shared": report.get("shared") or None,
        "pgnexus.finish_reason": report.get("finish_reason"),
        "pgnexus.tokens.prompt": usage.get("prompt_tokens"),
        "pgnexus.tokens.completion": usage.get("completion_tokens"),
        "pgnexus.cost": None if cost is None else float(cost),
    }
