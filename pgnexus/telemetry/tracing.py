"""Beside the way of a request: spans, where OpenTelemetry is installed and somebody wants them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True
    _PROPAGATOR = TraceContextTextMapPropagator()

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

# Seconds: while nobody has set a provider, OpenTelemetry goes through the environment each time it is asked for one.
_LOOK_AGAIN = 1.0

_own_provider: TracerProvider | None = None
_global_provider: TracerProvider | None = None
_looked_at = float("-inf")


def set_tracer_provider(provider: TracerProvider | None) -> None:
    """Send pgnexus's spans there, instead of to OpenTelemetry's global provider; None undoes it."""
    global _own_provider
    _own_provider = provider


def _provider() -> TracerProvider | None:
    if _own_provider is not None or not INSTALLED:
        return _own_provider
    global _global_provider, _looked_at
    now = time.monotonic()
    if _global_provider is None and now - _looked_at > _LOOK_AGAIN:
        provider = trace.get_tracer_provider()
        _looked_at = now
        _global_provider = None if isinstance(provider, trace.ProxyTracerProvider) else provider
    return _global_provider


class Scope:
    """A span, current in its block, which ends with it. This one is none: it takes everything and does nothing."""

    @property
    def traceparent(self) -> str | None:
        """Its W3C trace context, if it has one."""
        return None

    @property
    def is_recording(self) -> bool:
        return False

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes; those that are None are left out."""

    def event(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Something happened now."""

    def fail(self, type: str) -> None:
        """It ended in an error of this type; its message is not told, for vendors quote prompts in theirs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        return None


SILENT = Scope()


class _SpanScope(Scope):
    """A real one."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token: Any = None

    @property
    def traceparent(self) -> str | None:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return carrier.get("traceparent")

    @property
    def is_recording(self) -> bool:
        return self._span.is_recording()

    def set(self, attributes: Mapping[str, Any]) -> None:
        self._span.set_attributes(_given(attributes))

    def event(self, name: str, attributes: Mapping[str, Any]) -> None:
        self._span.add_event(name, _given(attributes))

    def fail(self, type: str) -> None:
        self._span.set_attribute("error.type", type)
        self._span.set_status(trace.Status(trace.StatusCode.ERROR, type))

    def __enter__(self) -> Self:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        otel_context.detach(self._token)
        if error is not None:
            # no record_exception: messages and tracebacks may quote prompts
            self.fail(str(getattr(error, "type", None) or type(error).__qualname__))
        self._span.end()


def start(
    name: str,
    kind: Literal["internal", "client", "producer", "consumer"],
    attributes: Mapping[str, Any],
    *,
    remote: str | None = None,
    is_remote: bool = False,
) -> Scope:
    """A span of this name, below the current one, or below ``remote`` (a traceparent) when ``is_remote``."""
    provider = _provider()
    if provider is None:
        return SILENT
    context = None
    if is_remote:  # never below what was current where the worker was started
        context = otel_context.Context()
        if remote is not None:
            context = _PROPAGATOR.extract({"traceparent": remote}, context)
    span = _tracer(provider).start_span(
        name, context, kind=trace.SpanKind[kind.upper()], attributes=_given(attributes)
    )
    return _SpanScope(span)


@lru_cache(maxsize=1)
def _tracer(provider: TracerProvider) -> trace.Tracer:
    return provider.get_tracer("pgnexus")


def is_active() -> bool:
    """Whether anybody wants spans."""
    return _provider() is not None


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
