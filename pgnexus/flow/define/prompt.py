"""What the handler of an LLM step returns, and the request it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final, Literal, TypedDict

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from pgnexus.errors import InvalidRequest, StepFailed
from pgnexus.flow.define.later import Later, seconds_of
from pgnexus.messages import Complexity, LLMRequest, Priority, faults, new_request_id
from pgnexus.storable import check

Answer = Literal["text", "json", "result"]

DEFAULT_TIMEOUT: Final = 3600.0  # seconds until an answer must be there, when nobody says another time
_AS_TEXT = ("tools", "response_format")  # jsonb would reorder their keys


class PromptSettings(TypedDict, total=False):
    """What an LLM step says of all its prompts; each prompt may say otherwise. ``timeout``: of the answer."""

    system: str
    complexity: Complexity
    task_type: str
    model: str
    provider: str
    agent_id: str
    max_tokens: int
    temperature: float
    top_p: float
    stop: str | list[str]
    seed: int
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    response_format: dict[str, Any]
    metadata: dict[str, Any]
    priority: Priority
    timeout: timedelta | float


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to a model: a text or a list of messages; what is None, the step or the router decides.

    ``timeout`` is how long the answer may take, in seconds or as a timedelta (an hour when nobody says);
    the other fields are those of `LLMService.call`.

    >>> Prompt("Sum it up", system="You are brief", complexity="simple").complexity
    'simple'
    """

    prompt: str | Sequence[Mapping[str, Any] | BaseModel]
    system: str | None = None
    complexity: Complexity | None = None
    task_type: str | None = None
    model: str | None = None
    provider: str | None = None
    agent_id: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    traceparent: str | None = None
    priority: Priority | None = None
    timeout: timedelta | float | None = None

    def asked(self) -> dict[str, Any]:
        """The fields that were given, but for the prompt itself."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "prompt"}
        return {name: value for name, value in given.items() if value is not None}


def deferral(answer: Any, settings: Mapping[str, Any], returns: Answer, field: str | None = None) -> Later:
    """The request of a prompt as a deferral of kind "llm"; `StepFailed` says what is wrong with it.

    ``details`` are ``request``, fields of the wire without request_id, ``as``: whether the task's output
    will be the answer's text, the JSON in it, or the whole result; and, if that JSON is an object around the
    output, the ``field`` that has it.
    """
    prompt = answer if isinstance(answer, Prompt) else Prompt(answer)
    if not isinstance(prompt.prompt, (str, list, tuple)):
        raise StepFailed(
            f"the handler of an LLM step returns a Prompt, a text, or a list of messages, "
            f"not a {type(prompt.prompt).__name__}"
        )
    fields = {**settings, **prompt.asked()}
    timeout = seconds_of(fields.pop("timeout", DEFAULT_TIMEOUT))
    fields["messages"] = _messages(prompt.prompt, fields.pop("system", None))
    _check(fields)
    for name in _AS_TEXT:
        if name in fields:
            fields[name] = _text(fields[name])
    details: dict[str, Any] = {"request": fields | {"timeout": timeout}, "as": returns}
    if field is not None and fields.get("response_format") == _text(settings.get("response_format")):
        details["field"] = field  # the prompt asks for no other form
    return Later(timeout, "llm", details)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def _messages(prompt: str | Sequence[Any], system: str | None) -> list[Any]:
    messages: Sequence[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    plain = [
        one.model_dump(mode="json", exclude_unset=True) if isinstance(one, BaseModel) else one
        for one in messages
    ]
    return plain if system is None else [{"role": "system", "content": system}, *plain]


def _check(fields: Mapping[str, Any]) -> None:
    try:
        LLMRequest.model_validate({**fields, "request_id": new_request_id()})
        check(dict(fields), "prompt")
    except ValidationError as error:
        raise StepFailed(f"the prompt is no valid request: {faults(error)}") from None
    except InvalidRequest as error:
        raise StepFailed(str(error)) from None
