"""Nexus side, under our own wires: connections to vendors, kept open between calls."""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from typing import Final, NamedTuple

from yarl import URL

from pgnexus.providers.http11 import Connection
from pgnexus.providers.http_exchange import Exchange

_CONNECT_TIMEOUT: Final = 10.0
_KEEPALIVE: Final = 30.0  # seconds that a connection is kept for the next call
_NEXT_ADDRESS: Final = 0.25  # seconds until a host's next address is tried beside the first


class NoConnection(ConnectionError):
    """Nobody took the connection up in time."""


class Origin(NamedTuple):
    """Where a vendor is."""

    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: URL) -> Origin:
        return cls(url.raw_host or "", url.port or 0, url.scheme == "https")


class Connections:
    """How many calls run at once is the caller's business, so the number of connections has no limit."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, list[tuple[float, Connection]]] = {}
        self._all: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def is_usable(self) -> bool:
        return self._loop is asyncio.get_running_loop()

    async def post(self, origin: Origin, head: bytes, body: bytes, seconds: float) -> Exchange:
        """Send a request; all of its answer has to be there within ``seconds``.

        Raises TimeoutError, `NoConnection`, another OSError, or ValueError for what is not HTTP.
        """
        deadline = self._loop.time() + seconds
        connection = self._kept(origin) or await self._connect(origin, deadline)
        return await connection.post(head, body, deadline)

    def close(self) -> None:
        """Close all, also those that are in use."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in tuple(self._all):
            connection.abort()
        self._idle.clear()

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            _, connection = idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, origin: Origin, deadline: float) -> Connection:
        at_most = self._loop.time() + _CONNECT_TIMEOUT
        try:
            async with asyncio.timeout_at(min(deadline, at_most)):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(lambda free: self._keep(origin, free), self._all.discard),
                    origin.host,
                    origin.port,
                    ssl=_tls() if origin.tls else None,
                    happy_eyeballs_delay=_NEXT_ADDRESS,
                )
        except TimeoutError:
            if self._loop.time() < deadline:
                raise NoConnection(f"no connection to {origin.host} in time") from None
            raise
        self._all.add(connection)
        return connection

    def _keep(self, origin: Origin, connection: Connection) -> None:
        self._idle.setdefault(origin, []).append((self._loop.time(), connection))
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_KEEPALIVE, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has used for long; the oldest are at the front."""
        since = self._loop.time() - _KEEPALIVE
        for origin, idle in tuple(self._idle.items()):
            for kept_at, connection in tuple(idle):
                if kept_at > since:
                    break
                connection.abort()
            self._idle[origin] = [(at, one) for at, one in idle if one.is_open]
            if not self._idle[origin]:
                del self._idle[origin]
        self._sweeping = self._loop.call_later(_KEEPALIVE / 2, self._sweep) if self._idle else None


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
