"""Nexus side, around one call to one vendor: its span by the GenAI conventions, and what is counted of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from pgnexus.telemetry import tracing
from pgnexus.telemetry.meters import METERS
from pgnexus.telemetry.request import current_request

if TYPE_CHECKING:
    from pgnexus.messages import LLMRequest, Usage

# Names of vendors where the GenAI conventions have others than we.
_PROVIDER_NAMES: Final = {
    "azure": "azure.ai.inference",
    "azureopenai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertexai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_KINDS: Final = {
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "cached": "cached_tokens",
    "cache_write": "cache_write_tokens",
    "reasoning": "reasoning_tokens",
}


def provider_call(
    provider: str,
    model: str,
    *,
    request: LLMRequest | None = None,
    operation: str = "chat",
    stream: bool = False,
    base_url: str | None = None,
) -> ProviderCall:
    """Watch one call: enter it before, tell it the first piece and the end, leave it after.

    ``request`` is for the attributes that the conventions want of it, never for its messages. A call that is left
    by `asyncio.CancelledError` without having been told its end was cancelled.
    """
    return ProviderCall(provider, model, request, operation, stream, base_url)


class ProviderCall:
    """One call to one vendor, as `provider_call` makes it."""

    def __init__(
        self,
        provider: str,
        model: str,
        request: LLMRequest | None,
        operation: str,
        stream: bool,
        base_url: str | None,
    ) -> None:
        self._who = (provider, model)
        self._label = METERS.label(provider, model)
        self._stream = stream
        self._ended = False
        self._first: float | None = None
        self._start = time.monotonic()
        self.span = tracing.SILENT
        if tracing.is_active():
            attributes = _asked(provider, model, request, operation, stream, base_url)
            self.span = tracing.start(f"{operation} {model}", "client", attributes)

    def __enter__(self) -> Self:
        self.span.__enter__()
        METERS.calls_in_flight.add(*self._label)
        if (around := current_request()) is not None:
            again = around.asks(self._who)
            if again is not None:
                (METERS.retries if again else METERS.fallbacks).add(*self._label)
                self.span.set({"pgnexus.fallback": not again})
        return self

    def first_token(self) -> None:
        """A piece of the answer came; all but the first are passed over."""
        if self._first is None:
            self._first = time.monotonic() - self._start
            METERS.first_token_time.observe(*self._label, value=self._first)
            self.span.set({"gen_ai.response.time_to_first_chunk": self._first})

    def ended(
        self,
        outcome: str,
        *,
        usage: Usage | None = None,
        cost: Decimal | None = None,
        response_model: str | None = None,
        finish_reason: str | None = None,
        status: int | None = None,
        estimated: bool = False,
    ) -> None:
        """How it ended: ``success``, ``cancelled``, or the type of the error, whose HTTP status is ``status``."""
        if self._ended:
            return
        self._ended = True
        METERS.calls_in_flight.add(*self._label, by=-1)
        label = METERS.label(*self._who, answered=outcome == "success")
        METERS.calls.add(*label, outcome)
        METERS.call_time.observe(*label, value=time.monotonic() - self._start)
        self._count(label, usage, cost)
        if self.span.is_recording:
            self.span.set(_answered(usage, cost, response_model, finish_reason, estimated))
            if outcome != "success":
                self.span.set({"http.response.status_code": status})
                self.span.fail(outcome)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._ended:
            self.ended(_outcome(error))
        self.span.__exit__(None, None, None)

    @staticmethod
    def _count(label: tuple[str, str], usage: Usage | None, cost: Decimal | None) -> None:
        if usage is not None:
            for kind, name in _KINDS.items():
                if tokens := getattr(usage, name):
                    METERS.tokens.add(*label, kind, by=tokens)
        if cost is not None:
            METERS.cost.add(*label, by=float(cost))
        elif usage is not None and usage.total_tokens:
            METERS.unpriced.add(*label)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "internal"  # nobody told how it ended
    if isinstance(error, Exception):
        return str(getattr(error, "type", "internal"))
    return "cancelled"


def _asked(
    provider: str, model: str, request: LLMRequest | None, operation: str, stream: bool, base_url: str | None
) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDER_NAMES.get(provider, provider),
        "gen_ai.request.model": model,
        "pgnexus.provider": provider,
    }
    if stream:
        attributes["gen_ai.request.stream"] = True
    if base_url is not None:
        parts = urlsplit(base_url)
        attributes["server.address"] = parts.hostname
        attributes["server.port"] = parts.port or (80 if parts.scheme == "http" else 443)
    if request is not None:
        stop = [request.stop] if isinstance(request.stop, str) else request.stop
        attributes |= {
            "gen_ai.agent.id": request.agent_id,
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p,
            "gen_ai.request.seed": request.seed,
            "gen_ai.request.stop_sequences": stop,
            "gen_ai.output.type": _output(request),
            "pgnexus.request_id": str(request.request_id),
        }
    return attributes


def _output(request: LLMRequest) -> str | None:
    kind = (request.response_format or {}).get("type")
    return None if kind is None else "text" if kind == "text" else "json"


def _answered(
    usage: Usage | None,
    cost: Decimal | None,
    response_model: str | None,
    finish_reason: str | None,
    estimated: bool,
) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.response.model": response_model,
        "gen_ai.response.finish_reasons": None if finish_reason is None else [finish_reason],
        "pgnexus.cost": None if cost is None else float(cost),
        "pgnexus.estimated": estimated or None,
    }
    if usage is not None:
        attributes |= {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
            "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens or None,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
        }
    return attributes
