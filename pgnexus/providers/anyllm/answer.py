"""Nexus side, the way back through any-llm: an answer, whole or in pieces, becomes a completion."""

from __future__ import annotations

from typing import Any, Final

from pgnexus import storable
from pgnexus.errors import AnswerTooLong, BadAnswer, ProviderError
from pgnexus.messages import Usage
from pgnexus.providers.anyllm.exchange import Exchange
from pgnexus.providers.openai import chat
from pgnexus.providers.provider import Completion, Delta

_UNNAMED: Final = (None, "", "None", "unknown")
_BROKEN_OFF: Final = ("ERROR", "TIMEOUT", "OTHER", "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL")


def completion(answer: Any, model: str, any_llm: str, exchange: Exchange) -> Completion:
    """The completion in any-llm's answer; raises `BadAnswer` when it is none, or only a part of one."""
    _check_whole(any_llm, exchange)
    try:
        data = answer.model_dump(exclude_none=True)
    except (AttributeError, ValueError):
        raise BadAnswer(f"{exchange.where}: not a completion, but a {type(answer).__name__}") from None
    return _completion(data, model, any_llm, exchange)


def _completion(data: dict[str, Any], model: str, any_llm: str, exchange: Exchange) -> Completion:
    for choice in data.get("choices") or ():
        message = choice.get("message")
        if not isinstance(message, dict):
            continue
        if any_llm != "openai":
            message.pop("refusal", None)  # any-llm's own words, in place of an answer that was filtered
        if not message.get("content") and (message.get("tool_calls") or "content" not in message):
            message["content"] = None
    if data.get("model") in _UNNAMED:
        data["model"] = model
    try:
        return chat.completion(data, model, exchange.where)
    except ProviderError as error:
        error.usage = counted(data.get("usage"))  # an answer that is of no use is paid for all the same
        raise


def counted(usage: Any) -> Usage | None:
    """The tokens of an answer in OpenAI's form; None when the vendor counted none."""
    found = chat.usage(usage, "prompt_tokens", "completion_tokens")
    return found if found.total_tokens else None


def _check_whole(any_llm: str, exchange: Exchange) -> None:
    """Raise `BadAnswer` for an answer whose vendor gave no reason for its end; any-llm would call it "stop"."""
    if any_llm not in ("anthropic", "gemini", "cohere") or exchange.status != 200:
        return
    try:
        raw = storable.parse(bytes(exchange.body))
    except ValueError:
        raise BadAnswer(f"{exchange.where}: an answer that is not JSON") from None
    if not isinstance(raw, dict):
        raise BadAnswer(f"{exchange.where}: an answer that is no object")
    if any_llm == "gemini":
        candidates = raw.get("candidates")
        if not candidates:
            return  # a blocked prompt has none, and any-llm says so
        first = candidates[0] if isinstance(candidates, list) else None
        reason = first.get("finishReason") if isinstance(first, dict) else None
    else:
        reason = raw.get("stop_reason" if any_llm == "anthropic" else "finish_reason")
    if not reason:
        raise BadAnswer(f"{exchange.where}: an answer without a reason for its end, so it was cut short")
    if reason in _BROKEN_OFF:
        raise BadAnswer(f"{exchange.where}: the vendor broke its answer off ({reason})")


class Pieces:
    """A streamed answer, put together from any-llm's chunks."""

    def __init__(self, model: str, any_llm: str, exchange: Exchange) -> None:
        self._model = model
        self._any_llm = any_llm
        self._exchange = exchange
        self._size = 0
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._numbers: dict[int, int] = {}
        self._extra: dict[str, Any] = {}
        self._reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self._named: str | None = None

    def add(self, chunk: Any) -> Delta | None:
        """Take one chunk; what it says, or None when it says nothing. Raises `AnswerTooLong`."""
        data = chunk.model_dump(exclude_none=True)
        if data.get("model") not in _UNNAMED:
            self._named = data["model"]
        self.usage = data.get("usage") or self.usage
        choices = data.get("choices")
        if not choices or choices[0].get("index", 0) != 0:
            return None
        self._reason = choices[0].get("finish_reason") or self._reason
        delta = choices[0].get("delta") or {}
        text, reasoning = delta.get("content") or "", delta.get("reasoning") or ""
        self._texts.append(text)
        self._reasoning.append(reasoning)
        self._refusals.append(delta.get("refusal") or "")
        _merge(self._extra, delta.get("extra_content"))
        calls = tuple(self._call(call) for call in delta.get("tool_calls") or ())
        self._grow(
            len(text) + len(reasoning) + sum(len(call["function"].get("arguments", "")) for call in calls)
        )
        if not (text or reasoning or calls):
            return None
        return Delta(storable.clean(text)[0], storable.clean(reasoning)[0], calls)

    def completion(self) -> Completion:
        """The whole answer; raises `BadAnswer` when it broke off."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts) or None}
        if refusal := "".join(self._refusals):
            message["refusal"] = refusal
        if reasoning := "".join(self._reasoning):
            message["reasoning"] = reasoning
        if self._calls:
            message["tool_calls"] = [self._calls[number] for number in sorted(self._calls)]
        elif message["content"] is None and self._reason == "stop":
            message["content"] = ""
        if self._extra:
            message["extra_content"] = self._extra
        choice = {"index": 0, "message": message, "finish_reason": self._reason}
        data = {"choices": [choice], "usage": self.usage, "model": self._named}
        return _completion(data, self._model, self._any_llm, self._exchange)

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        """A piece of a tool call, numbered from 0; Anthropic counts its blocks of text, too."""
        number = self._numbers.setdefault(call.get("index", 0), len(self._numbers))
        function = {name: value for name, value in (call.get("function") or {}).items() if value is not None}
        piece = {**call, "index": number, "function": function}
        whole = self._calls.setdefault(number, {"id": "", "type": "function", "function": {"arguments": ""}})
        whole["id"] = call.get("id") or whole["id"]
        if function.get("name"):
            whole["function"]["name"] = function["name"]
        whole["function"]["arguments"] += function.get("arguments", "")
        if extra := call.get("extra_content"):
            _merge(whole.setdefault("extra_content", {}), extra)
        return storable.clean(piece)[0]  # type: ignore[no-any-return]

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._exchange.limit:
            raise AnswerTooLong(
                f"{self._exchange.where}: an answer of more than {self._exchange.limit} bytes (max_message_bytes)"
            )


def _merge(into: dict[str, Any], more: Any) -> None:
    """What vendors want back with the next turn, such as signatures of thoughts: by vendor, then by name."""
    for vendor, values in more.items() if isinstance(more, dict) else ():
        if isinstance(values, dict):
            into.setdefault(vendor, {}).update(values)
