"""Nexus side, the step that leaves the machine: one HTTP call to a vendor that speaks OpenAI's wire."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import aiohttp
from multidict import CIMultiDict
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
from pgnexus.providers import openai_chat, openai_responses
from pgnexus.providers.http import HttpClient, proxy_for
from pgnexus.providers.openai_errors import refusal, safe_words

if TYPE_CHECKING:
    from pgnexus.messages import ApiVersion, LLMRequest
    from pgnexus.providers.catalogue import Vendor
    from pgnexus.providers.provider import Completion

_LARGE_BODY = 512 * 1024  # aiohttp writes larger bytes in one go, which would hold up the event loop


class OpenAIWire:
    """A vendor's chat completions and responses API. Retries are the router's business."""

    def __init__(self, vendor: Vendor, key: str | None, http: HttpClient, *, max_bytes: int) -> None:
        self._vendor = vendor
        self._key = key
        self._http = http
        self._max_bytes = max_bytes
        self._proxy = proxy_for(vendor.base_url)
        self._chat_url = URL(f"{vendor.base_url}/chat/completions")
        self._responses_url = URL(f"{vendor.base_url}/responses")
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

    async def complete(self, request: LLMRequest, model: str, *, timeout: float) -> Completion:
        """Ask once; see `Provider.complete`."""
        where = f"{self._vendor.name}/{model}"
        if self._api(request, model, where) == "responses":
            data = openai_responses.body(request, model, where)
            answer = await self._post(self._responses_url, data, timeout, where)
            return openai_responses.completion(answer, model, where)
        data = openai_chat.body(request, model, self._vendor)
        answer = await self._post(self._chat_url, data, timeout, where)
        return openai_chat.completion(answer, model, where)

    async def close(self) -> None:
        await self._http.release(self)

    def _api(self, request: LLMRequest, model: str, where: str) -> ApiVersion:
        spoken = self._vendor.speaks(model)
        if request.api_version is None:
            return spoken[0]
        if request.api_version not in spoken:
            raise ProviderError(f"{where}: does not speak the {request.api_version} API")
        return request.api_version

    async def _post(self, url: URL, data: bytes, timeout: float, where: str) -> Any:
        payload = data if len(data) < _LARGE_BODY else io.BytesIO(data)
        try:
            async with (
                asyncio.timeout(timeout),
                self._http.session(self).post(
                    url, data=payload, headers=self._headers, proxy=self._proxy, allow_redirects=False
                ) as response,
            ):
                raw = await self._read(response, where)
                status, headers = response.status, response.headers
        except ProviderError:
            raise
        # The causes are left out on purpose: what aiohttp says may hold headers, and with them the key.
        except TimeoutError as error:
            if isinstance(error, aiohttp.ServerTimeoutError):
                raise ProviderUnavailable(f"{where}: no connection to {url.host} in time") from None
            raise ProviderTimeout(f"{where}: no whole answer within {timeout:g} s") from None
        except aiohttp.ClientPayloadError as error:
            raise BadAnswer(f"{where}: the answer was cut short ({self._said(error)})") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderUnavailable(f"{where}: {type(error).__name__}: {self._said(error)}") from None
        return self._parsed(status, raw, headers, where)

    async def _read(self, response: aiohttp.ClientResponse, where: str) -> bytes:
        """The body, up to the limit: a vendor gone mad must not fill our memory."""
        content, limit = response.content, self._max_bytes
        raw = await content.readany()
        if content.at_eof():
            chunks = [raw]
        else:
            chunks, size = [raw], len(raw)
            while chunk := await content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    break
        raw = b"".join(chunks)
        if len(raw) > limit:
            raise AnswerTooLong(f"{where}: an answer of more than {limit} bytes (max_message_bytes)")
        return raw

    def _parsed(self, status: int, raw: bytes, headers: Any, where: str) -> Any:
        answer: Any = None
        if raw:
            try:
                answer = storable.parse(raw)
            except ValueError:
                if status == 200:
                    kind = headers.get("Content-Type", "no content type")
                    words = safe_words(raw[:200].decode(errors="replace"), self._key)
                    raise BadAnswer(f"{where}: not JSON ({kind}): {words}") from None
        if status != 200:
            text = raw[:20000].decode(errors="replace")
            raise refusal(status, answer, headers, where=where, key=self._key, raw=text)
        if error := openai_responses.refused(answer):
            code = error.get("code")
            real = code if isinstance(code, int) and 400 <= code < 600 else 502
            raise refusal(real, answer, headers, where=where, key=self._key)
        return answer

    def _said(self, error: BaseException) -> str:
        return safe_words(str(error) or "no words", self._key)
