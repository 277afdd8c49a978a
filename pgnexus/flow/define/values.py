"""At both ends of a handler: JSON into the annotated types, and what it returns into JSON text.

Models travel by the names of their fields; they are read by those and by their aliases.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Collection, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import Parameter
from pathlib import PurePath
from typing import Annotated, Any, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, PydanticUserError, RootModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import to_json, to_jsonable_python

from pgnexus.errors import InvalidOutput, InvalidRequest
from pgnexus.flow.define.later import Later
from pgnexus.storable import MAX_DEPTH, check

_SCALARS = (date, datetime, time, timedelta, UUID, Decimal, Enum, PurePath)
_LONG_INTEGER = b"0" * 300
_DIGITS = bytes(48 if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Misfit(ValueError):
    """A value does not fit its annotation; the text names the field."""


class Codec:
    """One annotation, and the way from JSON into it.

    >>> Codec(list[int]).decode(["1", 2], "input")
    [1, 2]
    """

    __slots__ = ("_adapter", "annotation")

    def __init__(self, annotation: Any) -> None:
        """Raises `Misfit` for a type that JSON cannot be made into."""
        anything = annotation is Any or annotation is object or annotation is Parameter.empty
        self.annotation: Any = Any if anything else annotation
        self._adapter: TypeAdapter[Any] | None = None
        if not anything:
            try:
                self._adapter = TypeAdapter(self.annotation)
                if not self._adapter.pydantic_complete:
                    self._adapter.rebuild(raise_errors=True)
            except (PydanticUserError, PydanticUndefinedAnnotation) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                raise Misfit(f"{name_of(annotation)} cannot be made from JSON ({reason})") from None

    def decode(self, value: Any, where: str) -> Any:
        """``value``, decoded JSON, as the annotation has it; raises `Misfit`."""
        if self._adapter is None:
            return value
        try:
            return self._adapter.validate_python(value, by_alias=True, by_name=True)
        except ValidationError:
            pass
        try:  # strict models take a date or a UUID only from JSON text
            return self._adapter.validate_json(to_json(value), by_alias=True, by_name=True)
        except ValidationError as error:
            raise Misfit(_faults(error, where)) from None

    @property
    def allows_none(self) -> bool:
        return self.annotation is Any or _allows_none(self.annotation)

    @property
    def is_list(self) -> bool:
        """Whether every value of the annotation is a JSON array; True when it says nothing."""
        return self.annotation is Any or _is_list(self.annotation)

    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the annotation; None when it says nothing, or has none."""
        try:
            return None if self._adapter is None else self._adapter.json_schema()
        except PydanticUserError:
            return None


def name_of(annotation: Any) -> str:
    """An annotation as its author wrote it."""
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def bare(annotation: Any) -> Any:
    """The type below ``Annotated``, ``NewType`` and ``type`` aliases."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation


def members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that it is."""
    annotation = bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for one in get_args(annotation) for member in members(one))
    return (annotation,)


def _allows_none(annotation: Any) -> bool:
    return any(member in (None, type(None), Any, object) for member in members(annotation))


def _is_list(annotation: Any) -> bool:
    return all(_is_one_list(member) for member in members(annotation))


def _is_one_list(annotation: Any) -> bool:
    if annotation is Any or annotation is object:
        return True
    origin = get_origin(annotation) or annotation
    if not isinstance(origin, type):
        return False
    if issubclass(origin, RootModel):
        return _is_list(origin.model_fields["root"].annotation)
    if issubclass(origin, (str, bytes, bytearray, Mapping)):
        return False
    return origin is Iterable or issubclass(origin, Collection)


def _faults(error: ValidationError, where: str) -> str:
    texts = []
    for fault in error.errors(include_url=False)[:5]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        texts.append(f"{where}{path[:100]}: {fault['msg'].removeprefix('Value error, ')}")
    return "; ".join(texts)


def dump(value: Any, where: str, max_bytes: int | None = None) -> str:
    """The JSON text of ``value``, models included; `InvalidOutput` for what is not JSON, or too large.

    >>> dump({"at": date(2030, 1, 31), "ok": True}, "step a: output")
    '{"at": "2030-01-31", "ok": true}'
    """
    try:
        text = json.dumps(value, default=_default, allow_nan=False, ensure_ascii=False)
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        _find(value, where)
        raise InvalidOutput(f"{where}: {error}") from None
    if _is_suspect(data):
        _find(json.loads(text), where)
    if max_bytes is not None and len(data) > max_bytes:
        raise InvalidOutput(
            f"{where}: {len(data):,} bytes are more than max_message_bytes ({max_bytes:,}); "
            "keep the data elsewhere and return its name, or raise that setting"
        )
    return text


def _is_suspect(data: bytes) -> bool:
    """Whether JSON might hold what cannot be stored: never a miss, and cheap, since every output comes by here."""
    if b"\\u0000" in data or (len(data) > 300 and _LONG_INTEGER in data.translate(_DIGITS)):
        return True
    brackets = data.translate(None, _NO_BRACKETS)
    if len(brackets) <= 2 * MAX_DEPTH:
        return False
    for _ in range(MAX_DEPTH // 2):  # each round takes two levels away at most
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return False
    return True


def _default(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", warnings=False)
    is_data = dataclasses.is_dataclass(value) and not isinstance(value, (type, Later))
    if is_data or isinstance(value, _SCALARS):
        return to_jsonable_python(value, by_alias=False, inf_nan_mode="constants")
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _find(value: Any, where: str) -> None:
    """Raise `InvalidOutput` with the path of what cannot be stored; the path costs a walk in Python."""
    try:
        check(_plain(value, 0), where)
    except InvalidRequest as error:
        raise InvalidOutput(str(error)) from None


def _plain(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH or value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        return {
            str(key) if isinstance(key, (int, float)) or key is None else key: _plain(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    try:
        return _default(value)
    except (TypeError, ValueError):  # it has something below it that is not JSON
        inner = dict(value) if isinstance(value, BaseModel) else getattr(value, "__dict__", None)
        known = isinstance(value, BaseModel) or dataclasses.is_dataclass(value)
        return _plain(inner, depth) if known and isinstance(inner, dict) else value
