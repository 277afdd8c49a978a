"""Nexus side, under every wire: the one HTTP client of this process, and the proxy it goes through."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = 30.0


class HttpClient:
    """A lazily opened `aiohttp.ClientSession`, shared by the wires that use it, closed by the last of them.

    How many calls run at once is the caller's business, so the number of connections has no limit.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._users: set[object] = set()

    def session(self, user: object) -> aiohttp.ClientSession:
        """The open session of the running loop; ``user`` gives it back with `release`."""
        self._users.add(user)
        session = self._session
        if session is not None and not session.closed and self._loop is asyncio.get_running_loop():
            return session
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE, ttl_dns_cache=60),
            # Each call has a clock of its own; this one is for connections that nobody answers.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self._session

    async def release(self, user: object) -> None:
        """The last user closes the session; one that never used it may say so, too."""
        self._users.discard(user)
        if not self._users and self._session is not None:
            session, self._session = self._session, None
            await session.close()


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for ``url``; looked up once per vendor, since it is slow."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
