"""Values on their way between handlers and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NewType, Union
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel

from pgnexus.errors import InvalidOutput, InvalidRequest
from pgnexus.flow.define.values import Codec, Misfit, dump
from pgnexus.storable import check

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**900), 2**900)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=30,
)


class Colour(Enum):
    RED = "red"


class Review(BaseModel):
    path: str
    score: float = Field(0.5, alias="Score")
    seen: datetime | None = None


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    id: UUID
    day: date
    colour: Colour


class Paths(RootModel[list[str]]):
    pass


@dataclass
class Point:
    x: int
    label: str | None = None


@settings(deadline=None)
@given(values)
def test_every_json_value_comes_back_as_it_was(value: Any) -> None:
    back = json.loads(dump(value, "output"))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (0.0, "0.0"), (False, "false"), ("", '""'), (None, "null"), ([], "[]"), ({}, "{}")],
)
def test_falsy_values_stay_what_they_are(value: Any, written: str) -> None:
    assert dump(value, "output") == written
    assert Codec(Any).decode(json.loads(written), "x") == value


typed = st.one_of(
    st.tuples(
        st.just(Review),
        st.builds(Review, path=text, Score=st.floats(0, 1), seen=st.datetimes(timezones=st.just(UTC))),
    ),
    st.tuples(st.just(Point), st.builds(Point, st.integers(), st.none() | text)),
    st.tuples(
        st.just(Strict), st.builds(Strict, id=st.uuids(), day=st.dates(), colour=st.sampled_from(Colour))
    ),
    st.tuples(st.just(Paths), st.builds(Paths, st.lists(text))),
    st.tuples(st.just(datetime), st.datetimes(timezones=st.just(UTC))),
    st.tuples(st.just(timedelta), st.timedeltas(timedelta(0), timedelta(days=400))),
    st.tuples(st.just(Decimal), st.decimals(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just(UUID), st.uuids()),
    st.tuples(st.just(Colour), st.sampled_from(Colour)),
    st.tuples(st.just(tuple[int, str]), st.tuples(st.integers(), text)),
    st.tuples(st.just(dict[int, bool]), st.dictionaries(st.integers(), st.booleans())),
    st.tuples(st.just(list[Point]), st.lists(st.builds(Point, st.integers()))),
)


@settings(deadline=None)
@given(typed)
def test_what_a_handler_returns_reaches_the_next_as_annotated(given: tuple[Any, Any]) -> None:
    annotation, value = given
    assert Codec(annotation).decode(json.loads(dump(value, "output")), "x") == value


def test_models_are_read_by_names_and_by_aliases() -> None:
    codec = Codec(Review)
    assert codec.decode({"path": "a", "score": 0.1}, "x") == codec.decode({"path": "a", "Score": 0.1}, "x")


def endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = [value]
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Unsound(BaseModel):
    score: float
    rest: Any = None


def steps() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, math.nan]}, r"output\.a\[1\]: nan is not JSON"),
        ([Unsound(score=math.inf)], r"output\[0\]\.score: inf is not JSON"),
        ({"a": b"bytes"}, r"output\.a: a bytes is not JSON"),
        ([[], {1, 2}], r"output\[1\]: a set is not JSON"),
        (steps(), "output: a generator is not JSON"),
        (Unsound(score=1, rest=object()), r"output\.rest: a object is not JSON"),
        ({"a": "x\0y"}, r"output\.a: contains a NUL"),
        ({"x\0y": 1}, r"output \(a key\): contains a NUL"),
        (["b\ud800"], r"output\[0\]: contains a lone surrogate"),
        (endless(), "nested deeper than 100"),
        (nested(101), "nested deeper than 100"),
        (nested(50_000), "nested deeper than 100"),
        (10**400, "integer of more than 300 digits"),
        ({"a": 10**5000}, r"output\.a: an integer of more than 300 digits"),
        ({(1, 2): 3}, r"the key \(1, 2\) is not a string"),
        (Review, "output: a ModelMetaclass is not JSON"),
        (ValueError("x"), "output: a ValueError is not JSON"),
    ],
    ids=range(17),
)
def test_what_is_not_json_is_refused_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(InvalidOutput, match=words) as raised:
        dump(value, "output")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "value",
    ["a\\u0000b", nested(98), [[i] for i in range(200)], "9" * 400, Path("/a"), {None: 1, 2: True}],
    ids=range(6),
)
def test_what_only_looks_wrong_is_let_through(value: Any) -> None:
    json.loads(dump(value, "output"))


@settings(deadline=None)
@given(
    st.integers(90, 110), st.lists(st.sampled_from(["list", "dict"]), min_size=2, max_size=2), st.booleans()
)
def test_depth_is_refused_exactly_where_the_store_refuses_it(
    depth: int, kinds: list[str], wide: bool
) -> None:
    value: Any = "]}"
    for level in range(depth):
        value = [value] if kinds[level % 2] == "list" else {"k": value}
    value = [value, *[[i] for i in range(300)]] if wide else value
    if depth + wide > 100:
        with pytest.raises(InvalidRequest) as refused:
            check(value, "output")
        with pytest.raises(InvalidOutput) as raised:
            dump(value, "output")
        assert str(raised.value) == str(refused.value)
    else:
        assert json.loads(dump(value, "output")) == value


def test_an_output_over_the_limit_says_how_large_it_is_and_what_to_do() -> None:
    assert dump("é" * 10, "output", max_bytes=22) == '"' + "é" * 10 + '"'
    with pytest.raises(InvalidOutput, match=r"step a: 22 bytes are more than max_message_bytes \(21\); keep"):
        dump("é" * 10, "step a", max_bytes=21)


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (Review, {"Score": 1}, r"input\.path: Field required"),
        (list[Review], [{"path": "a"}, {"path": 3}], r"input\[1\]\.path: Input should be a valid string"),
        (int, "many", "input: Input should be a valid integer"),
        (Strict, {"id": "x", "day": "2030-01-01", "colour": "red"}, r"input\.id: "),
    ],
)
def test_what_does_not_fit_names_the_field(annotation: Any, value: Any, words: str) -> None:
    with pytest.raises(Misfit, match=words):
        Codec(annotation).decode(value, "input")


class Opaque:
    pass


class Unfinished(BaseModel):
    part: Nowhere  # noqa: F821


@pytest.mark.parametrize("annotation", [Opaque, list[Opaque], Unfinished, "Nowhere"], ids=str)
def test_a_type_that_json_cannot_be_made_into_is_refused(annotation: Any) -> None:
    with pytest.raises(Misfit, match="cannot be made from JSON"):
        Codec(annotation)


Names = NewType("Names", list[str])


@pytest.mark.parametrize(
    ("annotation", "is_list"),
    [
        (list, True),
        (list[str], True),
        (tuple[int, ...], True),
        (set[int], True),
        (Sequence[str], True),
        (Iterable[str], True),
        (Annotated[list[int], Field(min_length=1)], True),
        (list[int] | tuple[str, ...], True),
        (Paths, True),
        (Names, True),
        (Any, True),
        (list[int] | None, False),
        (list | None, False),
        (str, False),
        (bytes, False),
        (dict[str, int], False),
        (Mapping[str, int], False),
        (Review, False),
        (int, False),
        (None, False),
    ],
)
def test_what_can_be_mapped_over(annotation: Any, is_list: bool) -> None:
    assert Codec(annotation).is_list is is_list


@pytest.mark.parametrize(
    ("annotation", "allows"),
    [
        (Any, True),
        (None, True),
        (int | None, True),
        (Union[None, Review], True),  # noqa: UP007
        (Annotated[int | None, Field(ge=1)], True),
        (int, False),
        (list[None], False),
    ],
)
def test_what_allows_none(annotation: Any, allows: bool) -> None:
    assert Codec(annotation).allows_none is allows
