"""What JSON and PostgreSQL can store: refuse at the caller's door, mend in a provider's answer.

PostgreSQL's jsonb holds no NUL and no lone surrogate, JSON no NaN and no Infinity, and deep nesting
breaks the parsers of both. A caller's input with any of them is refused (`check`), so that nothing is
changed behind its back. A provider's answer is mended (`clean`), so that a paid answer is never lost.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic_core import from_json

from pgnexus.errors import InvalidRequest

MAX_DEPTH = 100
_LONGEST_INTEGER = 1000  # bits; every parser of JSON reads one of those
_REPLACEMENT = "\ufffd"
_SURROGATES = dict.fromkeys(range(55296, 57344), _REPLACEMENT) | {0: _REPLACEMENT}


def check(value: Any, where: str) -> None:
    """Raise `InvalidRequest` naming the path of the first thing in ``value`` that cannot be stored.

    >>> check({"text": ["fine", 1.5, None]}, "messages")
    """
    stack: list[tuple[Any, str, int]] = [(value, where, 1)]
    while stack:
        item, path, depth = stack.pop()
        if isinstance(item, str):
            _check_text(item, path)
        elif isinstance(item, int) and item.bit_length() > _LONGEST_INTEGER:
            raise InvalidRequest(f"{_short(path)}: an integer of more than 300 digits")
        elif item is None or isinstance(item, (bool, int)):
            continue
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise InvalidRequest(f"{_short(path)}: {item} is not JSON; send a finite number")
        elif depth > MAX_DEPTH:
            raise InvalidRequest(f"{_short(path)}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(item, dict):
            for key, child in item.items():
                if not isinstance(key, str):
                    raise InvalidRequest(f"{_short(path)}: the key {key!r} is not a string")
                _check_text(key, f"{path} (a key)")
                stack.append((child, f"{path}.{key}", depth + 1))
        elif isinstance(item, (list, tuple)):
            stack.extend((child, f"{path}[{i}]", depth + 1) for i, child in enumerate(item))
        else:
            raise InvalidRequest(f"{_short(path)}: a {type(item).__name__} is not JSON")


def _check_text(text: str, path: str) -> None:
    if "\0" in text:
        raise InvalidRequest(f"{_short(path)}: contains a NUL character, which PostgreSQL cannot store")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"{_short(path)}: contains a lone surrogate at position {error.start}, which is not Unicode text"
            ) from None


def _short(path: str) -> str:
    return path if len(path) <= 100 else f"{path[:100]}…"


def parse(data: bytes | str) -> Any:
    """The value of a JSON text; ValueError when it is none, also when it is nested too deep.

    Takes what the strict parser refuses but providers send (lone surrogates, NaN): see `clean`.
    """
    try:
        return from_json(data)
    except ValueError:
        try:
            return json.loads(data)
        except RecursionError:
            raise ValueError("nested too deep") from None


def clean(value: Any) -> tuple[Any, bool]:
    """``value`` with NUL and lone surrogates as U+FFFD, NaN and Infinity as None, and whether it changed.

    What is nested deeper than `MAX_DEPTH` becomes None.

    >>> clean({"text": "a\\x00b", "score": float("nan")})
    ({'text': 'a\ufffdb', 'score': None}, True)
    """
    return _clean(value, 1)


def _clean(value: Any, depth: int) -> tuple[Any, bool]:
    if isinstance(value, str):
        if value.isascii() and "\0" not in value:
            return value, False
        mended = value.translate(_SURROGATES)
        return mended, mended != value
    if isinstance(value, float) and not math.isfinite(value):
        return None, True
    if not isinstance(value, (dict, list, tuple)):
        return value, False
    if depth > MAX_DEPTH:
        return None, True
    if isinstance(value, dict):
        pairs = [(_clean(str(k), depth), _clean(v, depth + 1)) for k, v in value.items()]
        changed = any(k[1] or v[1] for k, v in pairs)
        return ({k[0]: v[0] for k, v in pairs}, True) if changed else (value, False)
    items = [_clean(item, depth + 1) for item in value]
    changed = any(item[1] for item in items)
    return ([item[0] for item in items], True) if changed else (value, False)
