"""Beside the way of a request: what the database knows of all instances, for Prometheus, asked when it is scraped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pgnexus.db.connection import connect_blocking, sever
from pgnexus.db.queries import load
from pgnexus.printable import one_line
from pgnexus.watch.view import View

if TYPE_CHECKING:
    from prometheus_client.core import Metric

log = logging.getLogger(__name__)

HELP: Final = {
    "pgnexus_database_up": "Whether the database answered this scrape",
    "pgnexus_queue_depth": "Messages on a queue; past 10,000 an estimate",
    "pgnexus_queue_ready": "Messages on a queue that may be read now, 10,000 at most",
    "pgnexus_queue_oldest_seconds": "Age of a queue's oldest message",
    "pgnexus_parked_requests": "Requests in line for a limit, 10,000 at most; all agents' lines are one",
    "pgnexus_waiting_for_retry": "Requests that wait for their next try, 10,000 at most",
    "pgnexus_running_requests": "Requests that workers of all instances hold",
    "pgnexus_instances": "Live instances of the nexus side",
    "pgnexus_breakers_open": "1 for each model that is left alone",
}

_KEEP = 5.0  # seconds for which a look is shown again
_PATIENCE = 2.0  # seconds that a scrape waits
_LONGEST = 10.0  # seconds after which a look is given up


class DatabaseMetrics:
    """A collector for a registry of prometheus-client; has one connection of its own, and a thread that asks there.

    When the database does not answer in time, pgnexus_database_up is 0 and the rest is left out.
    """

    def __init__(self, url: str, *, lease: float, connect_timeout: float = 5.0) -> None:
        self._url = url
        self._params = {"lease": lease, "window": 0.0}  # calls are counted where they are made
        self._connect_timeout = connect_timeout
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "pgnexus metrics")
        self._connection: psycopg.Connection[Any] | None = None
        self._look: Future[View] | None = None
        self._looked_at = float("-inf")
        self._warned = False

    def describe(self) -> list[Metric]:
        """None by name, so that it can be registered while the database is away."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What there is to scrape."""
        view = self._view()
        from prometheus_client.core import GaugeMetricFamily as Gauge  # noqa: PLC0415 - an optional extra

        yield Gauge("pgnexus_database_up", HELP["pgnexus_database_up"], 0 if view is None else 1)
        if view is None:
            return
        for name, label, rows in _rows(view):
            family = Gauge(name, HELP[name], labels=[label] if label else [])
            for values, number in rows:
                family.add_metric(values, number)
            yield family
        open_ = Gauge("pgnexus_breakers_open", HELP["pgnexus_breakers_open"], labels=["provider", "model"])
        for one in view.breakers:
            open_.add_metric([one.provider, one.model], 1)
        yield open_

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            sever(self._connection)
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()

    def _view(self) -> View | None:
        with self._lock:
            now = time.monotonic()
            if self._look is None or (self._look.done() and now - self._looked_at >= _KEEP):
                self._looked_at = now
                self._look = self._thread.submit(self._ask)
            look = self._look
        try:
            view = look.result(_PATIENCE)
        except TimeoutError:
            return None
        except (psycopg.Error, OSError) as error:
            if not self._warned:  # once an outage, not once a scrape
                log.warning("metrics: the database does not answer: %s", one_line(error))
            self._warned = True
            return None
        self._warned = False
        return view

    def _ask(self) -> View:
        if self._connection is None or self._connection.closed:
            self._connection = connect_blocking(
                self._url, timeout=self._connect_timeout, application_name="pgnexus metrics"
            )
        guard = threading.Timer(_LONGEST, sever, [self._connection])
        guard.daemon = True
        guard.start()
        try:
            [(seen,)] = self._connection.execute(load("watch"), self._params).fetchall()
            return View.of(seen)
        except (psycopg.Error, OSError):
            self._connection.close()
            raise
        finally:
            guard.cancel()


_Rows = list[tuple[list[str], float]]


def _rows(view: View) -> Iterator[tuple[str, str, _Rows]]:
    queues = view.queues
    yield "pgnexus_queue_depth", "queue", [([one.queue], one.depth) for one in queues]
    yield "pgnexus_queue_ready", "queue", [([one.queue], one.ready) for one in queues]
    yield "pgnexus_queue_oldest_seconds", "queue", [([one.queue], one.oldest_seconds or 0) for one in queues]
    parked: dict[str, int] = {}
    for one in view.parked:  # no label names an agent: there may be as many as there are users
        scope = one.scope.partition(":")[0] if one.scope.startswith("agent:") else one.scope
        parked[scope] = parked.get(scope, 0) + one.requests
    yield "pgnexus_parked_requests", "scope", [([scope], requests) for scope, requests in parked.items()]
    yield "pgnexus_waiting_for_retry", "", [([], view.waiting_for_retry)]
    yield "pgnexus_running_requests", "", [([], view.in_flight)]
    yield "pgnexus_instances", "", [([], view.instances)]
