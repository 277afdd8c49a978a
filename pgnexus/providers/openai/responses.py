"""Nexus side, OpenAI's responses API: the body of a call, and the completion in its answer.

Only for models that speak nothing else, and for requests that ask for it: both ways are translated here,
so that callers see the form of chat completions whatever was spoken.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from pgnexus import storable
from pgnexus.errors import BadAnswer, ContentFiltered, ProviderError
from pgnexus.messages import LLMRequest, Message, Usage
from pgnexus.providers.catalogue import Vendor
from pgnexus.providers.openai import chat
from pgnexus.providers.provider import Completion

_PART_TYPES = {"text": "input_text", "file": "input_file"}


def body(request: LLMRequest, model: str, vendor: Vendor, *, stream: bool = False) -> bytes:
    """The JSON to send. ``seed`` does not exist here and is best effort anywhere, so it stays with us.

    Raises `ProviderError` for ``stop``, which does not exist here either but changes the answer: another candidate
    may know it. Reasoning does not go back to the vendor: it keeps nothing (``store``), and an answer's text is no
    input here.
    """
    if request.stop is not None:
        raise ProviderError(f"{vendor.name}/{model}: the responses API knows no stop sequences")
    data: dict[str, Any] = {
        "model": model,
        "input": [item for message in request.messages for item in _items(message)],
        "store": False,
    }
    if stream:
        data["stream"] = True
    if request.max_tokens is not None:
        data["max_output_tokens"] = request.max_tokens
    for name in ("temperature", "top_p"):
        if (value := getattr(request, name)) is not None:
            data[name] = value
    if request.tools:
        data["tools"] = [_tool(tool) for tool in request.tools]
    if request.tool_choice is not None:
        data["tool_choice"] = _tool_choice(request.tool_choice)
    if request.response_format is not None:
        data["text"] = {"format": _flat(request.response_format, "json_schema")}
    return to_json(data)


def completion(answer: Any, model: str, where: str) -> Completion:
    """The completion in a parsed answer; raises `BadAnswer` when it is none, or broken off."""
    if not isinstance(answer, dict) or not isinstance(answer.get("output"), list):
        raise BadAnswer(f"{where}: an answer without output")
    reason = _finish_reason(answer, where)
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for item in answer["output"]:
        if not isinstance(item, dict):
            raise BadAnswer(f"{where}: an output item that is no object")
        if item.get("type") == "reasoning":
            thoughts += _thoughts(item)
        elif item.get("type") == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
        elif item.get("type") == "message" and isinstance(item.get("content"), list):
            parts = [part for part in item["content"] if isinstance(part, dict)]
            texts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
            refusals += [part["refusal"] for part in parts if isinstance(part.get("refusal"), str)]
    if not (texts or refusals or calls) and reason == "stop":
        raise BadAnswer(f"{where}: an answer with nothing in it")
    if not (texts or calls) and reason == "content_filter":
        raise ContentFiltered(f"{where}: the vendor's content filter left nothing of the answer")
    texts = texts or refusals
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None}
    if thoughts:
        message["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
        reason = "tool_calls" if reason == "stop" else reason
    return _completion(answer, model, reason, message, where)


def _completion(
    answer: dict[str, Any], model: str, reason: str, message: dict[str, Any], where: str
) -> Completion:
    cleaned, mended = storable.clean(message)
    calls = cleaned.get("tool_calls")
    if calls:
        cleaned["tool_calls"] = chat.tool_calls(cleaned["tool_calls"], where)
    return Completion(
        message=cleaned,
        text=cleaned["content"],
        model=chat.short(answer.get("model")) or model,
        finish_reason=reason,
        usage=usage(answer.get("usage")),
        mended=mended,
    )


def usage(counted: Any) -> Usage:
    """The tokens of an answer, under this API's names."""
    return chat.usage(counted, "input_tokens", "output_tokens")


def _thoughts(item: dict[str, Any]) -> list[str]:
    """The texts of a reasoning item; most vendors give summaries, if any."""
    parts = [
        part for name in ("summary", "content") if isinstance(item.get(name), list) for part in item[name]
    ]
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _finish_reason(answer: dict[str, Any], where: str) -> str:
    status = answer.get("status")
    if status == "completed":
        return "stop"
    details = answer.get("incomplete_details")
    why = details.get("reason") if isinstance(details, dict) else None
    if status == "incomplete" and why == "max_output_tokens":
        return "length"
    if status == "incomplete" and why == "content_filter":
        return "content_filter"
    raise BadAnswer(f"{where}: an answer of status {str(status)[:50]!r}, which is not a whole one")


def _items(message: Message) -> list[dict[str, Any]]:
    """One chat message as input items."""
    if message.role == "tool":
        output: Any = message.content
        if isinstance(output, list):
            output = [_part(part, message.role) for part in output]
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": output}]
    items: list[dict[str, Any]] = []
    if message.content is not None:
        content: Any = message.content
        if isinstance(content, list):
            content = [_part(part, message.role) for part in content]
        items.append({"role": message.role, "content": content})
    for call in message.tool_calls or ():
        items.append({"type": "function_call", "call_id": call.id, **call.function})
    return items


def _part(part: dict[str, Any], role: str) -> dict[str, Any]:
    kind = part.get("type")
    if role == "assistant" and kind == "text":
        return {"type": "output_text", "text": part.get("text")}
    if kind == "image_url":
        image = part.get("image_url")
        image = (
            {"image_url": image.get("url"), **_rest(image, "url")}
            if isinstance(image, dict)
            else {"image_url": image}
        )
        return {"type": "input_image", **image}
    return {**(_flat(part, "file") if kind == "file" else part), "type": _PART_TYPES.get(str(kind), kind)}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    flat = _flat(tool, "function")
    if flat.get("type") == "function":
        flat.setdefault("strict", False)  # chat completions' default, which is not the default here
    return flat


def _tool_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    return choice if isinstance(choice, str) else _flat(choice, "function")


def _flat(outer: dict[str, Any], inner: str) -> dict[str, Any]:
    """{type, inner: {...}} as {type, ...}, in the order of the original."""
    nested = outer.get(inner)
    return {**_rest(outer, inner), **nested} if isinstance(nested, dict) else dict(outer)


def _rest(mapping: dict[str, Any], without: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != without}
