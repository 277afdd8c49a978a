"""Beside a test: what a model is asked, and what becomes of its answer, as on the way through the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from pgnexus.errors import ServiceMisused, StepFailed
from pgnexus.flow.define.prompt import Prompt
from pgnexus.messages import LLMResult, Usage, new_request_id

_BLOCK = re.compile(r"^\s*```(?:json|JSON)?\s*\n(.*)\n\s*```\s*$", re.DOTALL)


def prompt_of(details: Mapping[str, Any]) -> Prompt:
    """The prompt that a deferral of kind "llm" asks, with what its step says of all its prompts.

    >>> prompt_of({"request": {"messages": [{"role": "user", "content": "Hi"}], "complexity": "simple"}}).prompt
    'Hi'
    """
    fields = dict(details["request"])
    messages = list(fields.pop("messages"))
    if len(messages) > 1 and messages[0]["role"] == "system":
        fields["system"] = messages.pop(0)["content"]
    is_text = len(messages) == 1 and messages[0]["role"] == "user" and isinstance(messages[0]["content"], str)
    for name in ("tools", "response_format"):
        if name in fields:
            fields[name] = json.loads(fields[name])
    return Prompt(messages[0]["content"] if is_text else messages, **fields)


def output_of(slug: str, details: Mapping[str, Any], answer: Any) -> Any:
    """The output that a model's answer becomes.

    What the model could say better when it is asked again is a ValueError, or the answer itself where it is a
    retryable error; `StepFailed` is final.
    """
    if isinstance(answer, Exception):
        raise answer if getattr(answer, "retryable", False) else StepFailed(f"no answer came: {answer}")
    match details["as"]:
        case "text":
            return _text(slug, answer)
        case "result":
            return answer if isinstance(answer, LLMResult) else _result(_text(slug, answer))
        case _:
            return _value(answer, details.get("field")) if isinstance(answer, str) else answer


def _text(slug: str, answer: Any) -> str:
    if not isinstance(answer, str):
        raise ServiceMisused(
            f"step {slug} returns the model's text; let llm answer a text, not {answer!r:.200}"
        )
    return answer


def _value(text: str, field: str | None) -> Any:
    """The JSON that a text is, or that is in its one block of code; of an object around the output, its field."""
    block = _BLOCK.search(text)
    try:
        value = from_json(block[1] if block else text)
    except ValueError:
        raise ValueError(f"the answer is not JSON: {text:.500}") from None
    if field is None or not isinstance(value, dict):
        return value
    if field not in value:
        raise ValueError(f'the answer has no field "{field}": {text:.500}')
    return value[field]


def _result(text: str) -> LLMResult:
    return LLMResult(
        request_id=new_request_id(), status="success", response=text, model="fake", provider="fake",
        usage=Usage(), attempts=1, finish_reason="stop",
    )  # fmt: skip
