"""What PostgreSQL can store: refused at the door, mended in an answer."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnexus.errors import InvalidRequest
from pgnexus.storable import MAX_DEPTH, check, clean, parse


def nested(depth: int, leaf: object = 1) -> object:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a\0b", "here: contains a NUL"),
        ({"a": ["fine", "b\ud800"]}, r"here\.a\[1\]: contains a lone surrogate at position 1"),
        ({"a\0": 1}, r"here \(a key\): contains a NUL"),
        ({1: 2}, "the key 1 is not a string"),
        (math.nan, "here: nan is not JSON"),
        ([-math.inf], r"here\[0\]: -inf is not JSON"),
        (10**400, "here: an integer of more than 300 digits"),
        (nested(MAX_DEPTH + 1), f"deeper than {MAX_DEPTH}"),
        (nested(20_000), f"deeper than {MAX_DEPTH}"),
        ({"a": {1, 2}}, "a set is not JSON"),
        (b"bytes", "a bytes is not JSON"),
    ],
    ids=range(11),
)
def test_what_cannot_be_stored_is_refused_by_its_path(value, words):
    with pytest.raises(InvalidRequest, match=words) as raised:
        check(value, "here")
    assert len(str(raised.value)) < 400


def test_what_can_be_stored_is_let_through():
    check({"a": [1, 1.5, None, True, "x\U0001f600é", {"b": ()}], "n": -(2**900)}, "here")
    check(nested(MAX_DEPTH - 1), "here")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)


@given(anything)
def test_what_is_cleaned_can_be_stored(value):
    mended, changed = clean(value)
    check(mended, "here")
    try:
        check(value, "here")
    except InvalidRequest:
        assert changed
    else:
        assert not changed
        assert mended is value or mended == value


def test_what_is_too_deep_is_cut():
    mended, changed = clean(nested(5000))
    assert changed
    check(mended, "here")


@pytest.mark.parametrize("text", ["", "{", "nul", "[1,]", '{"a": 1', "[" * 5000])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def test_what_providers_send_all_the_same_is_read():
    assert parse(b'"\\ud800"') == "\ud800"
    assert math.isnan(parse("NaN"))
    assert parse(json.dumps(nested(300))) == nested(300)
