"""Nexus side, the step that leaves the machine: one call through any-llm, in a vendor's own wire.

any-llm and the vendor's SDK are imported by the first call, in a thread, since they take a second to load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from pgnexus.errors import NoCandidate, ProviderError, ProviderTimeout
from pgnexus.providers.anyllm import answer as answers
from pgnexus.providers.anyllm.errors import translated
from pgnexus.providers.anyllm.exchange import CURRENT, Exchange
from pgnexus.providers.anyllm.request import parameters as call_parameters
from pgnexus.providers.provider import bare

if TYPE_CHECKING:
    from pgnexus.messages import LLMRequest
    from pgnexus.providers.anyllm.client import Client
    from pgnexus.providers.catalogue import Vendor
    from pgnexus.providers.provider import Completion, OnDelta

_SLACK: Final = 5.0  # seconds by which an SDK's own clock runs after ours, which closes the connection
_NOBODY: Final = object()

# On debug some of these show headers, and with them the key; what they say of each call is said by us.
_TALKERS: Final = ("anthropic", "botocore", "google_genai", "httpcore", "httpx", "openai", "urllib3")


class AnyLLMWire:
    """A vendor that any-llm speaks to. Retries are the router's business, so the SDK's are switched off."""

    def __init__(self, vendor: Vendor, key: str | None, *, max_bytes: int) -> None:
        self._vendor = vendor
        self._any_llm = vendor.any_llm or vendor.name
        self._key = key
        self._max_bytes = max_bytes
        self._client: Client | None = None
        self._opening, self._turn = asyncio.Lock(), asyncio.Lock()

    @property
    def name(self) -> str:
        return self._vendor.name

    async def complete(
        self, request: LLMRequest, model: str, *, timeout: float, on_delta: OnDelta | None = None
    ) -> Completion:
        """Ask once; see `Provider.complete`."""
        where = f"{self._vendor.name}/{model}"
        parameters = call_parameters(request, model, self._any_llm, where)
        exchange = Exchange(where, self._max_bytes)
        token = CURRENT.set(exchange)
        try:
            async with asyncio.timeout(timeout) as clock:
                outcome = await self._ask(parameters, timeout, on_delta, exchange)
        except TimeoutError:
            if not clock.expired():
                raise
            outcome = ProviderTimeout(f"{where}: no whole answer within {timeout:g} s")
        finally:
            CURRENT.reset(token)
        if isinstance(outcome, ProviderError):
            raise bare(outcome)
        return outcome

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _ask(
        self, parameters: dict[str, Any], timeout: float, on_delta: OnDelta | None, exchange: Exchange
    ) -> Completion | ProviderError:
        client = await self._guarded(self._open(), exchange)
        if isinstance(client, ProviderError):
            return client
        async with self._turn:  # the SDKs translate for milliseconds without a pause: let others in between
            await asyncio.sleep(0)
        keywords = parameters | client.keywords(timeout + _SLACK, stream=on_delta is not None)
        answer = await self._guarded(client.complete(**keywords), exchange)
        if isinstance(answer, ProviderError):
            return answer
        model = parameters["model"]
        try:
            if on_delta is None or not keywords.get("stream"):
                whole = answers.completion(answer, model, self._any_llm, exchange)
                if on_delta is not None:
                    on_delta(whole.as_delta())
                return whole
            return await self._streamed(
                answer, answers.Pieces(model, self._any_llm, exchange), on_delta, exchange
            )
        except ProviderError as error:
            return error

    async def _streamed(
        self, stream: Any, pieces: answers.Pieces, on_delta: OnDelta, exchange: Exchange
    ) -> Completion | ProviderError:
        chunks = aiter(stream)
        try:
            while (chunk := await self._guarded(anext(chunks, _NOBODY), exchange)) is not _NOBODY:
                if isinstance(chunk, ProviderError):
                    chunk.usage = answers.counted(pieces.usage)
                    return chunk
                if (delta := pieces.add(chunk)) is not None:
                    on_delta(delta)
        finally:
            if hasattr(stream, "aclose"):
                await stream.aclose()
        return pieces.completion()

    async def _guarded(self, foreign: Awaitable[Any], exchange: Exchange) -> Any:
        """What any-llm gives back, or our error for the one it raises."""
        try:
            return await foreign
        except Exception as error:
            return translated(error, exchange, where=exchange.where, key=self._key)

    async def _open(self) -> Client:
        loop = asyncio.get_running_loop()
        client = self._client
        if client is not None and client.loop is loop:
            return client
        async with self._opening:
            if self._client is None or self._client.loop is not loop:
                self._client = await asyncio.to_thread(self._build, loop)
            return self._client

    def _build(self, loop: asyncio.AbstractEventLoop) -> Client:
        if self._vendor.missing is not None:
            raise NoCandidate(f"provider {self._vendor.name}: {self._vendor.missing}")
        from pgnexus.providers.anyllm.client import Client  # noqa: PLC0415 - imports any-llm, an extra

        for name in _TALKERS:
            logger = logging.getLogger(name)
            logger.setLevel(max(logger.level, logging.WARNING))
        # it warns at every call of what is meant to be so
        logging.getLogger("any_llm").setLevel(logging.ERROR)
        return Client(self._vendor, self._any_llm, self._key, loop)
