"""Nexus side, OpenAI's chat completions: the body of a call, and the completion in its answer.

Our messages have this form already, so the way out is one serialization and no translation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from pgnexus import storable
from pgnexus.errors import BadAnswer, ContentFiltered
from pgnexus.messages import LLMRequest, Usage
from pgnexus.providers.catalogue import Vendor
from pgnexus.providers.openai.stream import thinking
from pgnexus.providers.provider import Completion

_LARGEST_COUNT = 2**31 - 1  # tokens are stored as integer
_DETAILS = {
    name: f"{name}_details"
    for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
}
_USAGE: Callable[[Any], Usage] = Usage.__pydantic_validator__.validate_python  # half the time of Usage(...)


def body(request: LLMRequest, model: str, vendor: Vendor, *, stream: bool = False) -> bytes:
    """The JSON to send; ``metadata`` and what is about routing stay with us."""
    data: dict[str, Any] = {"model": model, "messages": request.messages}
    if stream:
        data["stream"] = True
        if vendor.stream_options:
            data["stream_options"] = {"include_usage": True}
    if request.max_tokens is not None:
        data[vendor.max_tokens_field] = request.max_tokens
    if request.seed is not None:
        data[vendor.seed_field] = request.seed
    for name in ("temperature", "top_p", "stop", "tools", "tool_choice", "response_format"):
        value = getattr(request, name)
        if value is not None:
            data[name] = value
    if not vendor.developer_role and any(message.role == "developer" for message in request.messages):
        data["messages"] = [
            message.model_copy(update={"role": "system"}) if message.role == "developer" else message
            for message in request.messages
        ]
    return to_json(data, exclude_none=True)


def completion(answer: Any, model: str, where: str) -> Completion:
    """The completion in a parsed answer; raises `BadAnswer` when it is none, or only a part of one."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise BadAnswer(f"{where}: an answer without choices[0].message")
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason:
        raise BadAnswer(f"{where}: an answer without finish_reason, so it was cut short")
    if reason == "error":
        raise BadAnswer(f"{where}: the vendor broke its answer off (finish_reason error)")
    cleaned, mended = storable.clean(message)
    cleaned = _plain(cleaned)
    calls = tool_calls(cleaned.get("tool_calls"), where)
    if calls:
        cleaned["tool_calls"] = calls
    text = _text(cleaned)
    if reason == "content_filter" and not text and not calls:
        raise ContentFiltered(f"{where}: the vendor's content filter left nothing of the answer")
    return Completion(
        message=cleaned,
        text=text,
        model=short(answer.get("model")) or model,
        finish_reason=short(reason) or reason,
        usage=usage(answer.get("usage"), "prompt_tokens", "completion_tokens"),
        mended=mended,
    )


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what says nothing, its reasoning under one name, and parts that are only text as a text."""
    content = message.get("content")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    plain: dict[str, Any] = {"role": "assistant", "content": content}
    for key, value in message.items():
        if value not in (None, "", [], {}) and key not in plain:
            plain[key] = value
    if isinstance(content, list) and all(_is_text(part) for part in content):
        texts = [str(part["text"]) for part in content if part["type"] == "text"]
        plain["content"] = "".join(texts) if texts else None
        reasoning = reasoning or "".join(thinking(part) for part in content if part["type"] == "thinking")
    if reasoning and isinstance(reasoning, str):
        plain["reasoning_content"] = reasoning
        plain.pop("reasoning", None)
    return plain


def _is_text(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "thinking" or (
        part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls as OpenAI writes them, also from servers that leave the id out or send objects for text."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise BadAnswer(f"{where}: tool_calls is a {type(calls).__name__}, not a list")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadAnswer(f"{where}: tool_calls[{i}] names no function")
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            function["arguments"] = to_json(arguments or {}).decode()
        if not isinstance(call.get("id"), str) or not call["id"]:
            call["id"] = f"call_{i}"
        call["type"] = "function"
    return calls


def usage(
    counted: Any, prompt_name: str = "prompt_tokens", completion_name: str = "completion_tokens"
) -> Usage:
    """The tokens of an answer; what a vendor leaves out is 0.

    Some vendors count thinking only in the total: the rest of the total is output, and is paid as such.
    """
    if not isinstance(counted, dict):
        return Usage()
    prompt = _count(counted.get(prompt_name))
    output = max(_count(counted.get(completion_name)), _count(counted.get("total_tokens")) - prompt)
    # What has more than one name has DeepSeek's too, or Anthropic's as gateways pass it on.
    cached = _count(counted.get("prompt_cache_hit_tokens"))
    written = _count(counted.get("cache_creation_input_tokens"))
    reasoning = _count(counted.get("reasoning_tokens"))
    if isinstance(details := counted.get(_DETAILS[prompt_name]), dict):
        cached = _count(details.get("cached_tokens")) or cached
        given = details.get("cache_write_tokens") or details.get("cache_creation_tokens")
        written = _count(given) or written
    if isinstance(details := counted.get(_DETAILS[completion_name]), dict):
        reasoning = _count(details.get("reasoning_tokens")) or reasoning
    cached = min(cached, prompt)
    return _USAGE(
        {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": min(prompt + output, _LARGEST_COUNT),
            "cached_tokens": cached,
            "cache_write_tokens": min(written, prompt - cached),
            "reasoning_tokens": min(reasoning, output),
        }
    )


def short(name: Any) -> str | None:
    """A vendor's name for something, if it is one that can be stored."""
    return storable.clean(name)[0][:300] if isinstance(name, str) and name else None


def _count(value: Any) -> int:
    if type(value) is int and 0 <= value <= _LARGEST_COUNT:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST_COUNT:
        return 0
    return int(value)


def _text(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, list):  # parts, as Mistral's thinking models send them
        parts = [
            part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
        ]
        content = "".join(part for part in parts if isinstance(part, str))
    if isinstance(content, str):
        return content
    refused = message.get("refusal")
    return refused if isinstance(refused, str) else None
