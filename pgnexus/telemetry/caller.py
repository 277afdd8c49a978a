"""Caller side, around a call: its span, the one of the message it sends, and the wait for the result."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from pgnexus.telemetry import tracing
from pgnexus.telemetry.queue import asked_attributes, queue_of, send_attributes
from pgnexus.telemetry.request import reported

if TYPE_CHECKING:
    from pgnexus.messages import LLMResult


class Waiting:
    """Around a `call` or a `wait`: both end with a result, or with an error that has one."""

    def __init__(self, span: tracing.Scope) -> None:
        self._span = span

    def __enter__(self) -> Self:
        self._span.__enter__()
        return self

    def arrived(self, result: LLMResult) -> LLMResult:
        """The result is here."""
        if self._span.is_recording:
            self._span.event("pgnexus.result", {"pgnexus.status": result.status})
            report = result.model_dump(include=_TOLD)
            self._span.set({"pgnexus.request_id": str(result.request_id), **reported(report)})
        return result

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        result = getattr(error, "result", None)
        if result is not None:
            self.arrived(result)
        self._span.__exit__(kind, error, traceback)


_TOLD = {
    "status", "provider", "model", "usage", "cost", "attempts", "cached", "shared", "finish_reason",
}  # fmt: skip
_NOT_WATCHED = Waiting(tracing.SILENT)


def call(complexity_or_model: str, options: Mapping[str, Any]) -> Waiting:
    """The caller's call, from its first moment until its result is here."""
    if not tracing.is_active():
        return _NOT_WATCHED
    return Waiting(tracing.start(f"call {complexity_or_model}", "internal", asked_attributes(options)))


def wait(request_id: UUID | str) -> Waiting:
    """The wait for the result of a request that was stored before."""
    if not tracing.is_active():
        return _NOT_WATCHED
    return Waiting(tracing.start("wait", "internal", {"pgnexus.request_id": str(request_id)}))


def send(options: Any) -> tracing.Scope:
    """The storing of requests; its context goes into ``options`` (a dict) unless they have one."""
    if not tracing.is_active():
        return tracing.SILENT
    lane = queue_of(options.get("priority"))
    scope = tracing.start(f"send {lane}", "producer", send_attributes(lane) | asked_attributes(options))
    if options.get("traceparent") is None and (traceparent := scope.traceparent) is not None:
        options["traceparent"] = traceparent
    return scope
