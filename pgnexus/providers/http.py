"""Nexus side, under our own wires: the connections of this process, and the proxies that some of them go through."""

from __future__ import annotations

import asyncio
import io
import math
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from pgnexus.providers.connections import Connections, NoConnection, Origin
from pgnexus.providers.http_exchange import CutShort

_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = 30.0
_LARGE_BODY = 512 * 1024  # aiohttp writes larger bytes in one go, which would hold up the event loop


class Answer(Protocol):
    """An answer that has begun; see `pgnexus.providers.http_exchange.Exchange`."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> CIMultiDict[str] | CIMultiDictProxy[str]: ...
    def at_eof(self) -> bool: ...
    async def readany(self) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where POSTs of JSON go, and what they always say; `Target.of` makes it."""

    url: URL
    headers: CIMultiDict[str] = field(repr=False)  # has the key in it
    proxy: str | None = field(repr=False)
    origin: Origin
    head: bytes = field(repr=False)
    """All but the length of the body, which follows."""

    @classmethod
    def of(cls, url: str, headers: dict[str, str]) -> Target:
        parsed = URL(url)
        default = parsed.port == {"http": 80, "https": 443}.get(parsed.scheme)
        host = parsed.raw_authority.rpartition("@")[2]
        all_headers = {
            "Host": host.rpartition(":")[0] if default and host.endswith(f":{parsed.port}") else host
        }
        all_headers |= {"Accept": "*/*", "Accept-Encoding": "identity", **headers}
        lines = [
            f"POST {parsed.raw_path_qs} HTTP/1.1",
            *(f"{name}: {value}" for name, value in all_headers.items()),
        ]
        head = "\r\n".join([*lines, "Content-Length: "]).encode()
        return cls(parsed, CIMultiDict(headers), proxy_for(url), Origin.of(parsed), head)


class HttpClient:
    """What calls are made with, opened on first use, shared by the wires that use it, closed by the last of them.

    How many calls run at once is the caller's business, so the number of connections has no limit.
    """

    def __init__(self) -> None:
        self._connections: Connections | None = None
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._users: set[object] = set()

    async def post(self, user: object, target: Target, body: bytes, seconds: float) -> Answer:
        """Send a request; all of its answer has to be there within ``seconds``. ``user`` gives back with `release`.

        This and reading the answer raise TimeoutError, `NoConnection`, `CutShort`, another OSError, or ValueError.
        """
        self._users.add(user)
        if target.proxy is not None or target.url.raw_user is not None:
            return await self._by_aiohttp(target, body, seconds)
        connections = self._connections
        if connections is None or not connections.is_usable:
            connections = self._connections = Connections()
        return await connections.post(
            target.origin, b"%b%d\r\n\r\n" % (target.head, len(body)), body, seconds
        )

    async def _by_aiohttp(self, target: Target, body: bytes, seconds: float) -> Answer:
        """Through a proxy, which is more than our own connections can do."""
        data = body if len(body) < _LARGE_BODY else io.BytesIO(body)
        timeout = aiohttp.ClientTimeout(seconds, sock_connect=_CONNECT_TIMEOUT, ceil_threshold=math.inf)
        try:
            return _ProxiedAnswer(
                await self._proxied().post(
                    target.url,
                    data=data,
                    headers=target.headers,
                    proxy=target.proxy,
                    allow_redirects=False,
                    timeout=timeout,
                )
            )
        except aiohttp.ClientError as error:
            raise _plain(error) from None

    def _proxied(self) -> aiohttp.ClientSession:
        """An open session of the running loop."""
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
        """The last user closes everything; one that never used it may say so, too."""
        self._users.discard(user)
        if self._users:
            return
        connections, self._connections = self._connections, None
        session, self._session = self._session, None
        if connections is not None and connections.is_usable:
            connections.close()
            await asyncio.sleep(0)  # until the transports have closed
        if session is not None:
            await session.close()


class _ProxiedAnswer:
    """An answer that aiohttp reads, with the errors of our own connections."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def at_eof(self) -> bool:
        return self._response.content.at_eof()

    async def readany(self) -> bytes:
        try:
            return await self._response.content.readany()
        except aiohttp.ClientError as error:
            raise _plain(error) from None

    def close(self) -> None:
        self._response.close()


def _plain(error: aiohttp.ClientError) -> OSError:
    """What aiohttp says may hold headers, and with them the key: its kind and words are all that is passed on."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, aiohttp.ServerTimeoutError):
        return NoConnection(words)
    return CutShort(words) if isinstance(error, aiohttp.ClientPayloadError) else ConnectionError(words)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for ``url``; looked up once per vendor, since it is slow."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
