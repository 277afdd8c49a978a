"""Beside the way of a request: every metric that this process counts. docs/observability.md lists them."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Final

from pgnexus.telemetry.counters import Counter, Family, Gauge, Histogram

OTHER: Final = "other"
_MOST_MODELS: Final = 500
_CALL: Final = ("provider", "model")
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_WAITS: Final = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)


class Meters:
    """The metrics, as attributes. Labels are of few values: no agent, no request, no model that nobody serves."""

    def __init__(self) -> None:
        self.taken = Counter(
            "pgnexus_requests_taken_total", "Requests that a worker took up, by lane", ("lane",)
        )
        self.queue_time = Histogram(
            "pgnexus_request_queue_seconds",
            "From the moment a request was accepted, or due, until a worker took it up the first time, by lane",
            ("lane",),
            buckets=_WAITS,
        )
        self.in_flight = Gauge("pgnexus_requests_in_flight", "Requests that workers of this process hold")
        self.settled = Counter(
            "pgnexus_requests_settled_total", "Requests that ended here, by status", ("status",)
        )
        self.returned = Counter(
            "pgnexus_requests_returned_total",
            "Requests put back: retry (to be tried again), park (over a limit), release (drained), lost (taken away)",
            ("reason",),
        )
        self.request_time = Histogram(
            "pgnexus_request_duration_seconds",
            "From the moment a worker took a request up until its end was stored, by status",
            ("status",),
            buckets=_SECONDS,
        )
        self.saved = Counter(
            "pgnexus_saved_calls_total",
            "Requests answered without a call of their own: cached, shared",
            ("how",),
        )
        self.calls = Counter(
            "pgnexus_provider_calls_total",
            "Calls to providers that ended, by outcome: success, cancelled, or the type of the error",
            (*_CALL, "outcome"),
        )
        self.calls_in_flight = Gauge(
            "pgnexus_provider_calls_in_flight", "Calls to providers under way", _CALL
        )
        self.call_time = Histogram(
            "pgnexus_provider_call_duration_seconds",
            "How long calls to providers took",
            _CALL,
            buckets=_SECONDS,
        )
        self.first_token_time = Histogram(
            "pgnexus_provider_first_token_seconds",
            "From the start of a streamed call until its first piece came",
            _CALL,
            buckets=_SECONDS,
        )
        self.retries = Counter(
            "pgnexus_provider_retries_total", "Calls that asked the same candidate again, at once", _CALL
        )
        self.fallbacks = Counter(
            "pgnexus_provider_fallbacks_total",
            "Calls that asked this candidate after another had failed",
            _CALL,
        )
        self.tokens = Counter(
            "pgnexus_tokens_total",
            "Tokens by kind: prompt, completion; cached and cache_write are among prompt, reasoning among completion",
            (*_CALL, "kind"),
        )
        self.cost = Counter(
            "pgnexus_cost_dollars_total", "Cost of calls whose price is known, in US dollars", _CALL
        )
        self.unpriced = Counter(
            "pgnexus_unpriced_calls_total", "Calls that used tokens and whose price is not known", _CALL
        )
        self._models: set[tuple[str, str]] = set()
        self._lock = Lock()

    @property
    def families(self) -> list[Family]:
        return [value for value in vars(self).values() if isinstance(value, Family)]

    def know(self, models: Iterable[tuple[str, str]]) -> None:
        """These (provider, model) may be labels; of models that callers make up, only those that answer are."""
        with self._lock:
            for one in models:
                if len(self._models) < _MOST_MODELS:
                    self._models.add(one)

    def label(self, provider: str, model: str, *, answered: bool = False) -> tuple[str, str]:
        """(provider, model) as labels; a model that is not known to exist is ``other``."""
        one = (provider, model)
        if one in self._models:
            return one
        if answered:
            self.know([one])
            if one in self._models:
                return one
        return provider, OTHER


METERS: Final = Meters()
"""What this process counts."""
