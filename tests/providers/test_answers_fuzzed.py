"""Whatever a vendor sends, the parsers give a completion that can be stored, or a `ProviderError`."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgnexus import storable
from pgnexus.errors import ProviderError
from pgnexus.providers.openai import chat as chat_api
from pgnexus.providers.openai import responses as responses_api
from pgnexus.providers.openai.errors import refusal, retry_after

KEYS = st.sampled_from(
    [
        *(
            "choices",
            "message",
            "content",
            "finish_reason",
            "tool_calls",
            "function",
            "name",
            "arguments",
            "id",
        ),
        *(
            "usage",
            "prompt_tokens",
            "total_tokens",
            "prompt_tokens_details",
            "cached_tokens",
            "model",
            "refusal",
        ),
        *("output", "type", "text", "status", "incomplete_details", "reason", "call_id", "error", "code"),
    ]
)
VALUES = st.sampled_from(
    ["stop", "assistant", "function_call", "message", "output_text", "completed", "incomplete", "text"]
) | st.text(st.characters(codec=None), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | VALUES
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | VALUES, inner, max_size=6),
    max_leaves=25,
)


def chat(message: Any, reason: Any, usage: Any) -> Any:
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}


def responses(output: Any, usage: Any) -> Any:
    return {"status": "completed", "output": output, "usage": usage}


HEADERS = st.fixed_dictionaries({}, optional={"Retry-After": VALUES, "retry-after-ms": VALUES})
OBJECTS = st.dictionaries(KEYS, JSON, max_size=6)
ANSWERS = (
    JSON | st.builds(chat, OBJECTS, VALUES, JSON) | st.builds(responses, st.lists(OBJECTS, max_size=3), JSON)
)


def both_parsers(answer: Any) -> None:
    for parser in (chat_api.completion, responses_api.completion):
        try:
            got = parser(answer, "a-model", "vendor/a-model")
        except ProviderError:
            continue
        stored = {"message": got.message, "text": got.text, "model": got.model, "reason": got.finish_reason}
        storable.check(stored, "completion")
        json.dumps(stored, allow_nan=False)
        assert got.finish_reason
        assert 0 <= got.usage.cached_tokens <= got.usage.prompt_tokens <= got.usage.total_tokens < 2**31


@settings(deadline=None)  # a busy machine is no failure
@given(ANSWERS)
@example(
    chat({"content": ["\ud800"], "tool_calls": [{"function": {"name": "f", "arguments": None}}]}, "\x00", {})
)
@example(chat({}, "stop", {"prompt_tokens": 2**31 - 1, "completion_tokens": 2**31 - 1}))
def test_any_json(answer: Any) -> None:
    both_parsers(answer)


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=200) | ANSWERS.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(raw: bytes) -> None:
    try:
        answer = storable.parse(raw)
    except ValueError:
        return
    both_parsers(answer)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.integers(300, 599),
    ANSWERS,
    HEADERS,
)
def test_any_refusal(status: int, body: Any, headers: dict[str, str]) -> None:
    error = refusal(status, body, headers, where="vendor/a-model", key=None)
    storable.check(str(error), "error")
    assert len(str(error)) < 600


@settings(deadline=None)  # a busy machine is no failure
@given(st.text() | st.floats().map(str) | st.integers().map(str))
def test_any_retry_after(text: str) -> None:
    wait = retry_after({"Retry-After": text})
    assert wait is None or 0 <= wait <= 86400
