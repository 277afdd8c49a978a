"""Nexus side, under any-llm: the HTTP client that its SDKs are given. Imported with any-llm, not before.

It looks like httpx' and is aiohttp's: httpx goes through all its connections whenever one is taken or given
back, and a thousand calls at once spend their time on that. Each answer is measured and kept on its way in: the SDKs
read one of any size, and keep to themselves whether it was whole.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from functools import lru_cache

import aiohttp
import httpx
from multidict import CIMultiDict
from yarl import URL

from pgnexus.errors import AnswerTooLong, BadAnswer
from pgnexus.providers.anyllm.exchange import CURRENT, MOST_OF_A_REFUSAL, Exchange
from pgnexus.providers.http import proxy_for

_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = 30.0
_LARGE_BODY = 512 * 1024  # aiohttp writes larger bytes in one go, which would hold up the event loop
_OURS = frozenset(("accept-encoding", "connection", "content-length", "host", "transfer-encoding"))
# The body is unpacked on its way in, and a vendor's cookies are nobody's business.
_DROPPED = frozenset(("content-encoding", "content-length", "set-cookie", "transfer-encoding"))
_proxy = lru_cache(maxsize=256)(proxy_for)  # by origin, of which there are few


def open_client() -> httpx.AsyncClient:
    """A client for an SDK, without limits of its own: how many calls run at once is the caller's business."""
    return httpx.AsyncClient(transport=_Transport(), timeout=None)


class _Transport(httpx.AsyncBaseTransport):
    """Belongs to one event loop, in which its first request is made."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE, ttl_dns_cache=60),
                # Each call has a clock of its own; this one is for connections that nobody answers.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = CURRENT.get() or Exchange(request.url.host, 2**31)
        exchange.status = None
        exchange.body.clear()
        data = await request.aread()
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.multi_items() if name not in _OURS
        )
        try:
            answer = await self._opened().request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=headers,
                data=data if len(data) < _LARGE_BODY else io.BytesIO(data),
                proxy=_proxy(f"{request.url.scheme}://{request.url.host}"),
                allow_redirects=False,
            )
        # The causes are left out on purpose: what aiohttp says may hold headers, and with them the key.
        except aiohttp.ServerTimeoutError:
            raise httpx.ConnectTimeout(f"no connection to {request.url.host} in time") from None
        except aiohttp.ClientConnectorError as error:
            raise httpx.ConnectError(str(error)) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise httpx.ReadError(f"{type(error).__name__}: {error}") from None
        exchange.status, exchange.headers = answer.status, answer.headers
        told = [(name, value) for name, value in answer.headers.items() if name.lower() not in _DROPPED]
        return httpx.Response(answer.status, headers=told, stream=_Measured(answer, exchange))


class _Measured(httpx.AsyncByteStream):
    """A body that is counted, and that says so when it ends too early."""

    def __init__(self, answer: aiohttp.ClientResponse, exchange: Exchange) -> None:
        self._answer = answer
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        streams = "stream" in exchange.headers.get("Content-Type", "")
        held = 0  # of a stream: bytes of the line that has not ended, for its words are counted elsewhere
        while piece := await self._piece():
            if streams:
                held = len(piece) - piece.rfind(b"\n") - 1 + (held if b"\n" not in piece else 0)
                exchange.body += piece[: max(0, MOST_OF_A_REFUSAL - len(exchange.body))]
            else:
                exchange.body += piece
                held = len(exchange.body)
            if held > exchange.limit:
                raise AnswerTooLong(
                    f"{exchange.where}: an answer of more than {exchange.limit} bytes (max_message_bytes)"
                )
            yield piece

    async def _piece(self) -> bytes:
        try:
            return await self._answer.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise BadAnswer(
                f"{self._exchange.where}: the answer was cut short ({type(error).__name__})"
            ) from None

    async def aclose(self) -> None:
        self._answer.close()
