"""Nexus side, under our own wires: the connections of this process, and the proxy they go through."""

from __future__ import annotations

import asyncio
import math
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict

_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = 30.0


class HttpClient:
    """Sessions of `aiohttp`, opened on first use over one set of connections, which the last user closes.

    How many calls run at once is the caller's business, so the number of connections has no limit.
    """

    def __init__(self) -> None:
        self._connector: aiohttp.TCPConnector | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: dict[object, aiohttp.ClientSession] = {}

    def session(self, user: object, headers: CIMultiDict[str] | None = None) -> aiohttp.ClientSession:
        """The session of ``user`` in the running loop; it sends ``headers`` with everything."""
        session = self._sessions.get(user)
        if session is not None and not session.closed and self._loop is asyncio.get_running_loop():
            return session
        self._sessions[user] = session = aiohttp.ClientSession(
            connector=self._connections(),
            connector_owner=False,
            headers=headers,
            # Each call has a clock of its own; this one is for connections that nobody answers.
            timeout=within(None),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return session

    def _connections(self) -> aiohttp.TCPConnector:
        loop = asyncio.get_running_loop()
        if self._connector is None or self._connector.closed or self._loop is not loop:
            self._loop = loop
            self._sessions.clear()
            self._connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE, ttl_dns_cache=60)
        return self._connector

    async def release(self, user: object) -> None:
        """Close the session of ``user``, if it has one, and after the last one the connections."""
        session = self._sessions.pop(user, None)
        if session is not None:
            await session.close()
        if not self._sessions and self._connector is not None:
            connector, self._connector = self._connector, None
            await connector.close()


def within(seconds: float | None) -> aiohttp.ClientTimeout:
    """A call's clock; to the moment, where aiohttp would wait until the next full second."""
    return aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_TIMEOUT, ceil_threshold=math.inf)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for ``url``; looked up once per vendor, since it is slow."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
