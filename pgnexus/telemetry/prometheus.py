"""Beside the way of a request: what this process counts, as prometheus-client shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgnexus.errors import InvalidSettings
from pgnexus.telemetry.counters import Counter, Histogram
from pgnexus.telemetry.meters import METERS, Meters

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


def registry(meters: Meters = METERS) -> CollectorRegistry:
    """A new registry of prometheus-client with all that this process counts, to serve where one likes.

    Raises `InvalidSettings` when prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise InvalidSettings('metrics need prometheus-client: pip install "pgnexus[telemetry]"') from None
    made = CollectorRegistry()
    made.register(_Collector(meters))
    return made


class _Collector:
    """`Meters` as prometheus-client wants to be told of them."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import (  # noqa: PLC0415 - an optional extra
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for family in self._meters.families:
            if isinstance(family, Histogram):
                histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                for labels, steps, total in family.read():
                    histogram.add_metric(labels, steps, total)
                yield histogram
            elif isinstance(family, Counter):
                make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                numbers = make(family.name, family.help, labels=family.labels)
                for labels, value in family.read().items():
                    numbers.add_metric(labels, value)
                yield numbers
