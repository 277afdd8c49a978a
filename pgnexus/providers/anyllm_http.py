"""Nexus side, under any-llm: the HTTP client that its SDKs are given. Imported with any-llm, not before.

The SDKs read an answer of any size and keep to themselves whether it was whole. So each body is measured and
kept on its way in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from pgnexus.errors import AnswerTooLong, BadAnswer
from pgnexus.providers.anyllm_exchange import CURRENT, Exchange

_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = 30.0


def open_client() -> httpx.AsyncClient:
    """A client without limits of its own: how many calls run at once is the caller's business."""
    return httpx.AsyncClient(
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE
        ),
        timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT),
        event_hooks={"request": [_request], "response": [_response]},
    )


async def _request(request: httpx.Request) -> None:
    """Count it, and let a connection that nobody answers fail sooner than the call."""
    timeout = request.extensions.get("timeout") or {}
    asked = timeout.get("connect")
    connect = _CONNECT_TIMEOUT if asked is None else min(asked, _CONNECT_TIMEOUT)
    request.extensions = {**request.extensions, "timeout": {**timeout, "connect": connect}}
    request.headers["Accept-Encoding"] = "identity"  # or a small body could unpack to one of any size
    if (exchange := CURRENT.get()) is not None:
        exchange.sent += 1
        exchange.status = None
        exchange.body.clear()


async def _response(response: httpx.Response) -> None:
    if (exchange := CURRENT.get()) is not None and isinstance(response.stream, httpx.AsyncByteStream):
        exchange.status, exchange.headers = response.status_code, response.headers
        response.stream = _Measured(response.stream, exchange)


class _Measured(httpx.AsyncByteStream):
    """A body that is counted, and that says so when it ends too early."""

    def __init__(self, stream: httpx.AsyncByteStream, exchange: Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            async for piece in self._stream:
                exchange.body += piece
                if len(exchange.body) > exchange.limit:
                    raise AnswerTooLong(
                        f"{exchange.where}: an answer of more than {exchange.limit} bytes (max_message_bytes)"
                    )
                yield piece
        except httpx.TimeoutException:
            raise
        except httpx.TransportError as error:
            raise BadAnswer(f"{exchange.where}: the answer was cut short ({type(error).__name__})") from None

    async def aclose(self) -> None:
        await self._stream.aclose()
