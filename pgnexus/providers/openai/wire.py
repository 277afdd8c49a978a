"""Nexus side, the step that leaves the machine: one HTTP call to a vendor that speaks OpenAI's wire."""

from __future__ import annotations

import asyncio
import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
from multidict import CIMultiDict
from pydantic_core import to_json
from yarl import URL

from pgnexus import storable
from pgnexus.errors import (
    AnswerTooLong,
    BadAnswer,
    InvalidSettings,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
)
from pgnexus.messages import ApiVersion
from pgnexus.providers.http import HttpClient, proxy_for, within
from pgnexus.providers.openai import chat, errors, responses
from pgnexus.providers.openai.responses_stream import ResponsesStream
from pgnexus.providers.openai.stream import AnswerStream, ChatStream
from pgnexus.providers.provider import Completion, bare

if TYPE_CHECKING:
    from pgnexus.messages import LLMRequest
    from pgnexus.providers.catalogue import Vendor
    from pgnexus.providers.provider import OnDelta

_LARGE_BODY = 512 * 1024  # aiohttp writes larger bytes in one go, which would hold up the event loop
_APIS: dict[ApiVersion, Any] = {"chat_completions": chat, "responses": responses}
_FAREWELL = 0.1  # seconds for the last bytes after the last event, so that the connection can be used again


class OpenAIWire:
    """A vendor's chat completions and responses API. Retries are the router's business."""

    def __init__(self, vendor: Vendor, key: str | None, http: HttpClient, *, max_bytes: int) -> None:
        self._vendor = vendor
        self._key = key
        self._http = http
        self._max_bytes = max_bytes
        self._proxy = proxy_for(vendor.base_url)
        self._urls: dict[ApiVersion, URL] = {
            "chat_completions": URL(f"{vendor.base_url}/chat/completions"),
            "responses": URL(f"{vendor.base_url}/responses"),
        }
        self._headers: CIMultiDict[str] = CIMultiDict(
            {"Content-Type": "application/json", "User-Agent": "pgnexus"}
        )
        if key:
            if not key.isascii() or not key.isprintable():
                names = " or ".join(vendor.api_key_env)
                raise InvalidSettings(f"{names}: the key holds characters that no HTTP header may hold")
            self._headers["Authorization"] = f"Bearer {key}"

    @property
    def name(self) -> str:
        return self._vendor.name

    async def complete(
        self, request: LLMRequest, model: str, *, timeout: float, on_delta: OnDelta | None = None
    ) -> Completion:
        """Ask once; see `Provider.complete`."""
        where = f"{self._vendor.name}/{model}"
        spoken = self._api(request, model, where)
        api, url = _APIS[spoken], self._urls[spoken]
        data = api.body(request, model, self._vendor, stream=on_delta is not None)
        stream = None if on_delta is None else self._stream(spoken, where, on_delta)
        answer: Any = None
        failure: ProviderError | None = None
        try:
            answer = await self._ask(url, data, timeout, where, stream)
            if errors.inside(answer):
                raise self._refused(answer, b"", where)
            completion: Completion = api.completion(answer, model, where)
        except ProviderError as error:
            counted = stream.usage if stream is not None else None
            if counted is None and isinstance(answer, dict):
                counted = answer.get("usage")
            used = api.usage(counted)
            error.usage = used if used.total_tokens else None
            failure, answer = error, None
        if failure is not None:
            raise bare(failure)
        if on_delta is not None and stream is not None and not stream.told:  # a vendor that does not stream
            on_delta(completion.as_delta())
        return completion

    async def close(self) -> None:
        await self._http.release(self)

    def _api(self, request: LLMRequest, model: str, where: str) -> ApiVersion:
        spoken = self._vendor.speaks(model)
        if request.api_version is None:
            return spoken[0]
        if request.api_version not in spoken:
            raise ProviderError(f"{where}: does not speak the {request.api_version} API")
        return request.api_version

    def _stream(self, spoken: ApiVersion, where: str, on_delta: OnDelta) -> AnswerStream:
        kind = ResponsesStream if spoken == "responses" else ChatStream
        return kind(where, self._max_bytes, on_delta, lambda body, raw: self._refused(body, raw, where))

    async def _ask(
        self, url: URL, data: bytes, timeout: float, where: str, stream: AnswerStream | None
    ) -> Any:
        """The parsed answer, or what ``stream`` gathered of it. Whatever ends it early closes the connection."""
        response = await self._opened(url, data, timeout, where)
        try:
            if stream is not None and response.status == 200 and _is_stream(response):
                await self._follow(response, stream, timeout, where)
                return stream.finish()
            raw = await self._read(response, timeout, where)
        finally:
            response.close()
        return self._parsed(response, raw, where)

    # The causes are left out on purpose: what aiohttp says may hold headers, and with them the key.

    async def _opened(self, url: URL, data: bytes, timeout: float, where: str) -> aiohttp.ClientResponse:
        # made here: aiohttp would first look which of its kinds of payload it is
        payload = (
            aiohttp.BytesPayload(data)
            if len(data) < _LARGE_BODY
            else aiohttp.BytesIOPayload(io.BytesIO(data))
        )
        session = self._http.session(self, self._headers)
        try:
            return await session.post(
                url, data=payload, proxy=self._proxy, allow_redirects=False, timeout=within(timeout)
            )
        except aiohttp.ServerTimeoutError:
            raise ProviderUnavailable(f"{where}: no connection to {url.host} in time") from None
        except TimeoutError:
            raise _late(timeout, where) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderUnavailable(f"{where}: {type(error).__name__}: {self._said(error)}") from None

    async def _chunk(self, response: aiohttp.ClientResponse, timeout: float, where: str) -> bytes:
        """The bytes that have come; none at the end."""
        try:
            return await response.content.readany()
        except TimeoutError:
            raise _late(timeout, where) from None
        except aiohttp.ClientPayloadError as error:
            raise BadAnswer(f"{where}: the answer was cut short ({self._said(error)})") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderUnavailable(f"{where}: {type(error).__name__}: {self._said(error)}") from None

    async def _read(self, response: aiohttp.ClientResponse, timeout: float, where: str) -> bytes:
        """The body, up to the limit: a vendor gone mad must not fill our memory."""
        raw, limit = await self._chunk(response, timeout, where), self._max_bytes
        if not response.content.at_eof():
            chunks, size = [raw], len(raw)
            while size <= limit and (chunk := await self._chunk(response, timeout, where)):
                chunks.append(chunk)
                size += len(chunk)
            raw = b"".join(chunks)
        if len(raw) > limit:
            raise AnswerTooLong(f"{where}: an answer of more than {limit} bytes (max_message_bytes)")
        return raw

    async def _follow(
        self, response: aiohttp.ClientResponse, stream: AnswerStream, timeout: float, where: str
    ) -> None:
        """Feed the stream until it ends; then wait a moment for the connection to be of use again."""
        while not stream.ended and (chunk := await self._chunk(response, timeout, where)):
            stream.feed(chunk)
        if not response.content.at_eof():
            with suppress(TimeoutError, ProviderError):
                async with asyncio.timeout(_FAREWELL):
                    while await self._chunk(response, timeout, where):
                        pass

    def _parsed(self, response: aiohttp.ClientResponse, raw: bytes, where: str) -> Any:
        answer: Any = None
        status, headers = response.status, response.headers
        if raw:
            try:
                answer = storable.parse(raw)
            except ValueError:
                if status == 200:
                    kind = headers.get("Content-Type", "no content type")
                    words = errors.safe_words(raw[:200].decode(errors="replace"), self._key)
                    raise BadAnswer(f"{where}: not JSON ({kind}): {words}") from None
        if status != 200:
            text = raw[:20000].decode(errors="replace")
            raise errors.refusal(status, answer, headers, where=where, key=self._key, raw=text)
        return answer

    def _refused(self, body: Any, raw: bytes, where: str) -> ProviderError:
        """The error that an answer of HTTP 200 holds."""
        text = (raw or to_json(storable.clean(body)[0]))[:20000].decode(errors="replace")
        status = errors.status_inside(body)
        return errors.refusal(status, body, {}, where=where, key=self._key, raw=text)

    def _said(self, error: BaseException) -> str:
        return errors.safe_words(str(error) or "no words", self._key)


def _late(timeout: float, where: str) -> ProviderTimeout:
    return ProviderTimeout(f"{where}: no whole answer within {timeout:g} s")


def _is_stream(response: aiohttp.ClientResponse) -> bool:
    """Some vendors answer whole though asked for a stream; few name a stream by its right name."""
    return "json" not in response.headers.get("Content-Type", "")
