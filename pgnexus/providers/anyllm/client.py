"""Nexus side, under the any-llm wire: any-llm's client of one vendor. Imported by the first call, not before."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httpx
from any_llm import AnyLLM
from any_llm.exceptions import MissingApiKeyError, UnsupportedProviderError
from any_llm.providers.openai.base import BaseOpenAIProvider

from pgnexus.errors import NoCandidate
from pgnexus.providers.anyllm.http import open_client
from pgnexus.providers.catalogue import Vendor

# boto3 streams with blocking reads, which would stop this process
_BLOCKING: Final = ("bedrock", "sagemaker")
_READ_TIMEOUT: Final = 600.0
_CONNECT_TIMEOUT: Final = 10.0


class Client:
    """One vendor's client; belongs to the event loop it was made for."""

    def __init__(
        self, vendor: Vendor, any_llm: str, key: str | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.loop = loop
        self._any_llm = any_llm
        self._http = open_client()
        try:
            kind = AnyLLM.get_provider_class(any_llm)
            self._kind = kind
            self._llm = kind(
                api_key=key or (None if any_llm in _BLOCKING else "none"),
                api_base=vendor.any_llm_url or None,
                unified_exceptions=True,
                **_options(kind, any_llm, vendor, self._http),
            )
        except UnsupportedProviderError:
            raise NoCandidate(f"provider {vendor.name}: any-llm knows no {any_llm!r}") from None
        except MissingApiKeyError:
            raise NoCandidate(f"provider {vendor.name}: it has no credentials") from None
        except ImportError:
            raise NoCandidate(
                f"provider {vendor.name}: its SDK is not installed: pip install 'any-llm-sdk[{any_llm}]'"
            ) from None

    def keywords(self, timeout: float, *, stream: bool) -> dict[str, Any]:
        """What a call needs beside its request; ``stream`` only where it can be done."""
        given: dict[str, Any] = {}
        if self._kind.TIMEOUT_SUPPORT != "unsupported" and self._any_llm not in _BLOCKING:
            given["timeout"] = timeout
        if stream and self._kind.SUPPORTS_COMPLETION_STREAMING and self._any_llm not in _BLOCKING:
            given["stream"] = True
            if issubclass(self._kind, BaseOpenAIProvider):
                given["stream_options"] = {"include_usage": True}
        return given

    async def complete(self, **keywords: Any) -> Any:
        return await self._llm.acompletion(**keywords)

    async def close(self) -> None:
        """Close our connections, and those of an SDK that makes its own."""
        await self._http.aclose()
        client: Any = getattr(self._llm, "client", None)
        if hasattr(client, "__aexit__"):
            await client.__aexit__(None, None, None)
        elif self._any_llm in _BLOCKING and client is not None:
            client.close()


def _options(kind: type[AnyLLM], any_llm: str, vendor: Vendor, http: httpx.AsyncClient) -> dict[str, Any]:
    """How each SDK is told not to retry, and to use our HTTP client."""
    options: dict[str, Any] = {}
    if kind.MAX_RETRIES_SUPPORT != "unsupported":
        options["max_retries"] = 0
    if any_llm == "anthropic" or issubclass(kind, BaseOpenAIProvider):
        options["http_client"] = http
    elif any_llm == "gemini":
        from google.genai.types import HttpOptions  # noqa: PLC0415 - only with its SDK

        # v1 lacks models and fields that v1beta has; which of them is the default depends on the SDK's version.
        options["http_options"] = HttpOptions(httpx_async_client=http, api_version="v1beta")
    elif any_llm == "cohere":
        options["httpx_client"] = http
        if vendor.any_llm_url:
            options["base_url"] = vendor.any_llm_url
    elif any_llm in _BLOCKING:
        from botocore.config import Config  # noqa: PLC0415 - only with its SDK

        options["config"] = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=vendor.timeout or _READ_TIMEOUT,
            max_pool_connections=100,
        )
    return options
