"""Nexus side, the way back of a call that failed: a vendor's refusal becomes one of our typed errors.

Vendors that speak OpenAI's wire agree on HTTP statuses, mostly, and on the shape of the error, hardly. The
status decides first; codes and the vendor's own words tell apart what shares a status.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pgnexus import storable
from pgnexus.errors import (
    AuthenticationFailed,
    BadRequest,
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaSpent,
    TooManyRequests,
)

_WORDS = 500
_LONGEST_WAIT = 86400.0

_BY_STATUS: dict[int, type[ProviderError]] = {
    400: BadRequest,
    401: AuthenticationFailed,
    402: QuotaSpent,
    403: AuthenticationFailed,
    404: ModelNotFound,
    408: ProviderTimeout,
    409: ProviderUnavailable,
    410: ModelNotFound,
    413: ContextTooLong,
    422: BadRequest,
    425: ProviderUnavailable,
    429: TooManyRequests,
    504: ProviderUnavailable,
}

# What a code or the words say more exactly than the status: the statuses it may hide behind, the pattern.
_TELLING: tuple[tuple[frozenset[int], re.Pattern[str], type[ProviderError]], ...] = tuple(
    (frozenset(statuses), re.compile(pattern, re.IGNORECASE), error)
    for statuses, pattern, error in (
        (
            (400, 402, 403, 429),
            r"insufficient_quota|insufficient.balance|billing_hard_limit|billing_not_active|credit balance"
            r"|credits? (is|are) (depleted|exhausted)",
            QuotaSpent,
        ),
        ((400, 403, 413, 422), r"rate_limit_exceeded|tokens per minute", TooManyRequests),
        (
            (400, 413, 422, 500),
            r"context_length_exceeded|exceed_context_size|context (length|window|size)|prompt is too long"
            r"|too many (input )?tokens|input token count|maximum context|reduce the length",
            ContextTooLong,
        ),
        (
            (400, 403, 422),
            r"content_filter|content_policy|content management policy|responsible_?ai|data_inspection_failed"
            r"|moderation|safety system",
            ContentFiltered,
        ),
        (
            (400, 422),
            r"invalid_api_key|api[ _]key (is )?not valid|api_key_invalid|incorrect api key",
            AuthenticationFailed,
        ),
        ((400, 403, 422), r"model_not_found|model_decommissioned|invalid_model|unknown model", ModelNotFound),
        ((400, 422), r"model .{1,200} (does not exist|not found|is not supported)", ModelNotFound),
    )
)

# The same for an error inside an answer of HTTP 200, whose own status says nothing.
_INSIDE: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), status)
    for pattern, status in (
        (r"quota|billing|rate.?limit|too_many|throttl|resource_exhausted", 429),
        (r"overloaded", 529),
        (r"api_key|authentication|unauthorized", 401),
        (r"permission", 403),
        (r"not_found", 404),
        (r"invalid_request|invalid_argument|invalid_prompt|context_length|content_|safety", 400),
    )
)
# OpenAI's and Groq's words, which are all that an error in the middle of a stream has.
_TRY_AGAIN = re.compile(
    r"(?:try again|retry) in (?:(\d{1,3})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,6}(?:\.\d{1,9})?) ?(ms|s))?",
    re.IGNORECASE,
)
_RETRY_DELAY = re.compile(r'"retryDelay":\s*"(\d{1,9}(?:\.\d{1,9})?)s"')


def refusal(
    status: int, body: Any, headers: Mapping[str, str], *, where: str, key: str | None, raw: str = ""
) -> ProviderError:
    """The typed error for an answer of HTTP ``status`` with the parsed ``body`` (or ``raw`` text).

    ``where`` names vendor and model; ``key`` is struck out of the vendor's words.
    """
    words, codes = _told(body)
    words = words or raw.strip() or "no words"
    hay = f"{codes} {words}"
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = ProviderUnavailable if status >= 500 else ProviderError
    for statuses, pattern, telling in _TELLING:
        if status in statuses and pattern.search(hay[:4000]):
            kind = telling
            break
    said = safe_words(words, key)
    return kind(f"{where}: HTTP {status}: {said}", status=status, retry_after=retry_after(headers, raw))


def inside(answer: Any) -> bool:
    """Whether an answer of HTTP 200 is an error all the same, as the responses API and some gateways send it."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return bool(error) and isinstance(error, dict | str)


def status_inside(body: Any) -> int:
    """The HTTP status that an error inside an answer of HTTP 200 would have had by itself."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else body if isinstance(body, dict) else {}
    for name in ("code", "status", "status_code"):
        text = str(error.get(name) or "")
        if len(text) == 3 and text.isdecimal() and 400 <= int(text) < 600:
            return int(text)
    codes = _told(body)[1]
    return next((status for pattern, status in _INSIDE if pattern.search(codes[:1000])), 502)


def safe_words(words: str, key: str | None) -> str:
    """A vendor's words, storable, cut to a sane length and without the key."""
    if key:
        words = words.replace(key, "***")
    words = " ".join(str(storable.clean(words)[0]).split())
    return words if len(words) <= _WORDS else words[: _WORDS - 1] + "…"


def retry_after(headers: Mapping[str, str], raw: str = "") -> float | None:
    """Seconds to wait, by ``retry-after-ms``, ``Retry-After`` (seconds or a date), Google's retryDelay, or the words.

    A date is reckoned from the vendor's own clock, where it tells the time.
    """
    wait = _number(headers.get("retry-after-ms"))
    if wait is not None:
        return _sane(wait / 1000)
    text = headers.get("Retry-After") or headers.get("retry-after")
    wait = _number(text)
    if wait is not None:
        return _sane(wait)
    if text:
        when = _date(text)
        if when is not None:
            now = _date(headers.get("Date")) or datetime.now(UTC)
            return _sane((when - now).total_seconds())
    if found := _RETRY_DELAY.search(raw):
        return _sane(float(found[1]))
    found = _TRY_AGAIN.search(raw)
    return _sane(_seconds(*found.groups())) if found and any(found.groups()) else None


def _seconds(hours: str | None, minutes: str | None, seconds: str | None, unit: str | None) -> float:
    rest = float(seconds or 0) / (1000 if unit and unit.lower() == "ms" else 1)
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + rest


def _date(text: str | None) -> datetime | None:
    try:
        when = parsedate_to_datetime(text) if text else None
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    return when.replace(tzinfo=UTC) if when is not None and when.tzinfo is None else when


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def _sane(seconds: float) -> float:
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _told(body: Any) -> tuple[str, str]:
    """The vendor's words and its codes, wherever its error carries them."""
    if isinstance(body, list) and body:  # Google wraps its error in a list
        body = body[0]
    if not isinstance(body, dict):
        return (body, "") if isinstance(body, str) else ("", "")
    error = body.get("error", body)
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, dict):
        error = body
    message = next((error[name] for name in ("message", "detail", "msg") if error.get(name)), "")
    if not isinstance(message, str):
        message = repr(message)
    codes = " ".join(str(error[name]) for name in ("code", "type", "status", "param") if error.get(name))
    return message, codes
