"""Nexus side, the way back of a call through any-llm that failed: every foreign error becomes one of ours.

What the vendor answered decides first, by the same knowledge as for OpenAI's wire; the table is for errors
without an answer. Only a vendor's answer may say that a key is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic_core import to_json

from pgnexus import storable
from pgnexus.errors import (
    AuthenticationFailed,
    BadAnswer,
    ContentFiltered,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
)
from pgnexus.providers.anyllm.exchange import Exchange
from pgnexus.providers.anyllm.table import kind_of, library_of
from pgnexus.providers.openai.errors import refusal, safe_words, status_inside

_TRANSPORTS: Final = ("httpx", "httpx2", "botocore")

# What a vendor calls its error inside a stream, whose HTTP status has been 200 all along.
_TYPE_STATUS: Final[dict[str, int]] = {
    "invalid_request_error": 400,
    "validationException": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "throttlingException": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def translated(error: BaseException, exchange: Exchange, *, where: str, key: str | None) -> ProviderError:
    """Our error for one that came out of any-llm; ``key`` is struck out of what it says."""
    links = list(_links(error))
    for link in links:
        if isinstance(link, ProviderError):
            return link
    if exchange.status is not None and exchange.status >= 300:
        raw = exchange.text()
        return refusal(exchange.status, _parsed(raw), exchange.headers, where=where, key=key, raw=raw)
    for link in links:
        if (answer := _answer(link)) is not None:
            status, body, headers = answer
            raw = body if isinstance(body, str) else to_json(body, serialize_unknown=True).decode()
            return refusal(status, body, headers, where=where, key=key, raw=raw)
    return _by_table(links, exchange, where, key)


def _links(error: BaseException | None) -> Iterator[BaseException]:
    """What an error came from, the innermost first; any-llm's own wrapping, which only guesses, is the last."""
    found: list[BaseException] = []
    while error is not None and error not in found and len(found) < 10:
        found.append(error)
        error = getattr(error, "original_exception", None) or error.__cause__
    return reversed(found)


def _by_table(links: list[BaseException], exchange: Exchange, where: str, key: str | None) -> ProviderError:
    first = links[0]
    # What any-llm calls the error of somebody else is a guess by its words, so it counts only for its own.
    known = [link for link in links if library_of(type(link)) != "any_llm" or len(links) == 1]
    kind = next((found for link in known if (found := kind_of(type(link))) is not None), None)
    if kind is None:
        kind = ProviderUnavailable if isinstance(first, OSError) else ProviderError
    if isinstance(first, TimeoutError):
        kind = ProviderTimeout
    elif (
        exchange.status is not None
        and library_of(type(first)) not in _TRANSPORTS
        and kind is not ContentFiltered
    ):
        kind = BadAnswer  # there was an answer, and the library could make nothing of it
    elif kind is AuthenticationFailed:
        kind = ProviderUnavailable  # nobody has refused the key
    return kind(f"{where}: {type(first).__name__}: {safe_words(str(first) or 'no words', key)}")


def _answer(error: BaseException) -> tuple[int, Any, Mapping[str, str]] | None:
    """(status, body, headers) of the vendor's answer inside an SDK's error, or None."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return _amazon(response)
    status = _first_integer(error, "status_code", "status", "code") or _first_integer(response, "status_code")
    body = next((found for name in ("body", "details") if (found := getattr(error, name, None))), None)
    headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
    if (status is None or status < 300) and isinstance(body, dict):
        status = _told_inside(body)
    if status is None or not 300 <= status < 600:
        return None
    return status, body if body is not None else str(error), headers


def _amazon(response: dict[str, Any]) -> tuple[int, Any, Mapping[str, str]] | None:
    meta, error = response.get("ResponseMetadata") or {}, response.get("Error") or {}
    status = meta.get("HTTPStatusCode") or _TYPE_STATUS.get(str(error.get("Code")))
    if not isinstance(status, int) or status < 300:
        return None
    body = {"error": {"message": error.get("Message"), "code": error.get("Code")}}
    return status, body, meta.get("HTTPHeaders") or {}


def _told_inside(body: dict[str, Any]) -> int | None:
    """The status that an error event of a stream would have had as an answer; None when it is no such event."""
    inner = body.get("error", body)
    if not isinstance(inner, dict) or not (inner.get("type") or inner.get("code") or inner.get("message")):
        return None
    return _TYPE_STATUS.get(str(inner.get("type"))) or status_inside(body)


def _first_integer(thing: Any, *names: str) -> int | None:
    for name in names:
        value = getattr(thing, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _parsed(raw: str) -> Any:
    try:
        return storable.parse(raw)
    except ValueError:
        return None
