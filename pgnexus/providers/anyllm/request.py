"""Nexus side, the way out through any-llm: our request as the parameters of its ``acompletion``.

any-llm takes OpenAI's form and translates it; here is only what it would otherwise trip over.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import to_json

from pgnexus import storable
from pgnexus.errors import BadRequest, ProviderError
from pgnexus.messages import LLMRequest

_OPENAI: Final = "openai"
_CLAUDE_MAX_TOKENS: Final = 8192  # Anthropic's API demands a number
_SEEDLESS: Final = ("anthropic", "bedrock")  # a seed is best effort anywhere
_RENAMED: Final[dict[str, dict[str, str]]] = {"cohere": {"stop": "stop_sequences", "top_p": "p"}}


def parameters(request: LLMRequest, model: str, any_llm: str, where: str) -> dict[str, Any]:
    """The keywords of ``acompletion`` at the vendor that any-llm calls ``any_llm``.

    Raises `ProviderError` for what cannot be asked this way, `BadRequest` for what no vendor could read.
    """
    if request.api_version == "responses":
        raise ProviderError(f"{where}: does not speak the responses API through any-llm")
    foreign = any_llm != _OPENAI
    data: dict[str, Any] = {
        "model": model,
        "messages": [
            _message(message.model_dump(exclude_none=True), foreign, where) for message in request.messages
        ],
    }
    for name in ("max_tokens", "temperature", "top_p", "stop", "seed", "tools"):
        value = getattr(request, name)
        if value is not None:
            data[_RENAMED.get(any_llm, {}).get(name, name)] = value
    if any_llm in _SEEDLESS:
        data.pop("seed", None)
    if any_llm == "anthropic":
        data.setdefault("max_tokens", _CLAUDE_MAX_TOKENS)
    if request.tools and request.tool_choice not in (None, "auto"):  # auto is what all do unasked
        data["tool_choice"] = request.tool_choice
    if request.response_format is not None and request.response_format["type"] != "text":
        data["response_format"] = request.response_format
    return data


def _message(message: dict[str, Any], foreign: bool, where: str) -> dict[str, Any]:
    if foreign and message["role"] in ("developer", "system"):
        message["role"] = "system"
        message["content"] = _text(message["content"])
    elif isinstance(message.get("content"), list):
        message["content"] = [_part(part) for part in message["content"]]
    for call in message.get("tool_calls", ()):
        call["function"] = _function(call["function"], where)
    return message


def _text(content: Any) -> Any:
    """The text of a system message; others than OpenAI take no parts there."""
    if not isinstance(content, list):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))


def _part(part: dict[str, Any]) -> dict[str, Any]:
    image = part.get("image_url")
    return {**part, "image_url": {"url": image}} if isinstance(image, str) else part


def _function(function: dict[str, Any], where: str) -> dict[str, Any]:
    """A function's call with its arguments as JSON text of an object, which some vendors are sent as an object."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return {**function, "arguments": to_json(arguments or {}).decode()}
    try:
        is_object = isinstance(storable.parse(arguments), dict) if arguments.strip() else False
    except ValueError:
        is_object = False
    if is_object:
        return function
    if arguments.strip():
        raise BadRequest(f"{where}: the arguments of a call of {function.get('name')!r} are no JSON object")
    return {**function, "arguments": "{}"}
