"""Beside the way of a request: Prometheus metrics over HTTP, on a thread of their own."""

from __future__ import annotations

import asyncio
from typing import Self

from pgnexus.errors import InvalidSettings
from pgnexus.telemetry.prometheus import registry
from pgnexus.watch.database_metrics import DatabaseMetrics


class MetricsServer:
    """Serves what this process counts and what the database knows, while its block runs; ``url`` says where."""

    def __init__(
        self, host: str, port: int, database_url: str, *, lease: float, connect_timeout: float = 5.0
    ) -> None:
        self._host = host
        self._port = port
        self._database = DatabaseMetrics(database_url, lease=lease, connect_timeout=connect_timeout)
        self.url = ""

    async def __aenter__(self) -> Self:
        found = registry()  # says which extra is missing
        from prometheus_client import ProcessCollector, start_http_server  # noqa: PLC0415 - an optional extra

        ProcessCollector(registry=found)
        found.register(self._database)
        try:
            self._server, self._thread = start_http_server(self._port, self._host, found)
        except OSError as error:
            self._database.close()
            raise InvalidSettings(
                f"metrics_port: cannot listen on {self._host}:{self._port}: {error.strerror or error}"
            ) from error
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{host}:{self._server.server_port}/metrics"
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._database.close()
