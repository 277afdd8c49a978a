"""Beside the way of a request: its spans (OpenTelemetry) and what is counted of it (Prometheus).

Counting is plain Python and always on. Spans are made where ``opentelemetry-api`` is installed and somebody has set a
tracer provider; else each of the functions here costs less than a microsecond. No prompt and no answer is ever in a
span, and no header of ours goes to a vendor.
"""

from pgnexus.telemetry.caller import call, send, wait
from pgnexus.telemetry.meters import METERS, Meters
from pgnexus.telemetry.provider_call import ProviderCall, provider_call
from pgnexus.telemetry.request import WatchedRequest, request
from pgnexus.telemetry.tracing import set_tracer_provider

__all__ = [
    "METERS",
    "Meters",
    "ProviderCall",
    "WatchedRequest",
    "call",
    "provider_call",
    "request",
    "send",
    "set_tracer_provider",
    "wait",
]
