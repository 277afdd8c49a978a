"""Before T1: what a caller asks for, checked and written as the wire wants it. Nothing is stored yet."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TypedDict, Unpack, get_args
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from pgnexus.caller.vision import check_named
from pgnexus.errors import InvalidRequest
from pgnexus.messages import (
    WIRE_VERSION,
    AskedComplexity,
    Complexity,
    LLMRequest,
    Priority,
    complexity_for,
    faults,
    new_request_id,
)
from pgnexus.settings import Settings
from pgnexus.storable import check

Messages = str | Sequence[Mapping[str, Any]]


class Options(TypedDict, total=False):
    """The options of a request.

    ``timeout`` is seconds until its deadline (None: none), ``delay`` seconds before it may run,
    ``not_before`` the moment from which it may run (with a time zone), ``priority`` one of interactive,
    standard, batch. ``tools``, ``tool_choice`` and ``response_format`` have the form of OpenAI's chat
    completions. ``cache`` is seconds for which the answer may be given again to the same words, ``single_flight`` asks
    requests of the same words that are under way at the same time only once. The same ``idempotency_key`` gives
    the same request for ``idempotency_ttl`` seconds.
    """

    request_id: UUID | str
    task_type: str
    complexity: AskedComplexity
    model: str
    provider: str
    api_version: str
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
    cache: float
    single_flight: bool
    timeout: float | None
    delay: float
    not_before: datetime
    idempotency_key: str
    idempotency_ttl: float
    priority: Priority
    reply_to: str
    traceparent: str
    retry_of: UUID | str
    stream: bool
    workflow: str
    instance_id: UUID | str
    job_id: str


_LOCAL = (
    "timeout",
    "delay",
    "not_before",
    "idempotency_key",
    "idempotency_ttl",
    "workflow",
    "instance_id",
    "job_id",
)
_AS_TEXT = ("tools", "response_format")
_LONGEST = 10 * 365 * 86400.0  # seconds ahead that anything may be; further is a slip
_GRACE = 30.0  # seconds past a request's deadline for its timeout to be stored and told
_KNOWN = frozenset(Options.__annotations__)


@dataclass(frozen=True, slots=True)
class RequestDraft:
    """A request that may be stored: its identity, and the JSON text that `pgnexus.enqueue` takes.

    >>> draft = RequestDraft.make("simple", "Hello", Settings())
    >>> draft.request_id.version
    7
    """

    request_id: UUID
    body: str = field(repr=False)
    timeout: float | None = None
    lead: float = 0.0  # seconds before it may run
    any_model_that_sees: bool = False  # it has an image, and leaves the model to us

    @property
    def patience(self) -> float | None:
        """Seconds in which its result must have come; None without a deadline."""
        return None if self.timeout is None else self.lead + self.timeout + _GRACE

    @classmethod
    def make(
        cls,
        complexity_or_model: str,
        messages: Messages,
        settings: Settings,
        unknown: Mapping[str, Any] = MappingProxyType({}),
        /,  # whatever a caller's mapping has by these names is no option
        **options: Unpack[Options],
    ) -> RequestDraft:
        """Check everything that can be checked without the database; raises `InvalidRequest`.

        ``unknown`` are fields of the wire that are no options: they are kept as they are.
        """
        given = _given(options)
        local = {name: given.pop(name) for name in _LOCAL if name in given}
        _check_local(local)
        if "idempotency_key" in local:
            local.setdefault("idempotency_ttl", settings.idempotency_ttl)
        message = {**unknown, **_message(complexity_or_model, messages, given, settings)}
        check(message, "request")
        check(
            {name: local[name] for name in ("idempotency_key", "workflow", "job_id") if name in local},
            "request",
        )
        request = _validated(message)
        check_named(request, settings)
        message["request_id"] = str(request.request_id)  # it may have been written in another form
        message["complexity"] = request.effective_complexity
        for name in _AS_TEXT:
            if name in message and not isinstance(message[name], str):
                message[name] = to_json(message[name]).decode()
        timeout = local.get("timeout", settings.request_timeout)
        body = to_json(message | {k: v for k, v in (local | {"timeout": timeout}).items() if v is not None})
        if len(body) > settings.max_message_bytes:
            raise InvalidRequest(
                f"request {request.request_id}: {len(body):,} bytes are more than max_message_bytes "
                f"({settings.max_message_bytes:,}); send less, or raise that setting on both sides"
            )
        open_choice = request.model == request.provider == "auto"
        return cls(
            request.request_id, body.decode(), timeout, _lead(local), open_choice and request.has_images
        )

    @classmethod
    def again(
        cls, asked: Mapping[str, Any], retry_of: UUID, workflow: str, settings: Settings
    ) -> RequestDraft:
        """A new request that asks what a stored one asked, with the fields of its own that it had."""
        given = {name: value for name, value in asked.items() if name not in ("v", "messages", "retry_of")}
        model = given.pop("model", None) or "auto"
        first = str(given.get("complexity", "medium")) if model == "auto" else model
        options: Any = {name: value for name, value in given.items() if name in _KNOWN}
        unknown = {name: value for name, value in given.items() if name not in _KNOWN}
        options |= {"retry_of": retry_of, "workflow": workflow}
        return cls.make(first, asked["messages"], settings, unknown, **options)


def _given(options: Options) -> dict[str, Any]:
    """The options that were given; None means not given, but for timeout, where it means no deadline."""
    for name in options:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(_KNOWN))}"
            raise InvalidRequest(f"there is no option {name!r}{hint}")
    return {name: value for name, value in options.items() if value is not None or name == "timeout"}


def _message(
    complexity_or_model: str, messages: Messages, given: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    if not isinstance(complexity_or_model, str) or not complexity_or_model:
        raise InvalidRequest(
            "the first argument is a complexity (simple, medium, complex, auto) or a model's name"
        )
    _check_first(complexity_or_model)
    if isinstance(messages, str) and messages:
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise InvalidRequest("messages: give a text, or a list of messages that is not empty")
    message: dict[str, Any] = {
        "v": WIRE_VERSION,
        "request_id": str(given.pop("request_id", None) or new_request_id()),
    }
    words = get_args(Complexity) if "complexity" in given else (*get_args(Complexity), "auto")
    kind = "complexity" if complexity_or_model in words else "model"
    if given.setdefault(kind, complexity_or_model) != complexity_or_model:
        raise InvalidRequest(
            f"the first argument names the {kind} {complexity_or_model!r}, the option {kind} {given[kind]!r}"
        )
    message["messages"] = [_plain(item) for item in messages]
    message |= {name: str(value) if isinstance(value, UUID) else value for name, value in given.items()}
    message.setdefault("complexity", complexity_for(given.get("task_type")))
    message.setdefault("model", "auto")
    message.setdefault("provider", "auto")
    message.setdefault("priority", "standard")
    message.setdefault("reply_to", settings.reply_to)
    return message


def _check_first(word: str) -> None:
    """A complexity that is written wrong would be taken for a model's name."""
    if word in get_args(Complexity) or not word.strip().isalpha():
        return
    if close := difflib.get_close_matches(word.strip().lower(), get_args(Complexity), 1, 0.8):
        raise InvalidRequest(f"there is no complexity {word!r}; did you mean complexity {close[0]}?")


def _plain(item: Any) -> Any:
    if isinstance(item, BaseModel):
        return item.model_dump(mode="json", exclude_unset=True)
    return dict(item) if isinstance(item, Mapping) else item


def _validated(message: dict[str, Any]) -> LLMRequest:
    try:
        return LLMRequest.model_validate(message)
    except ValidationError as error:
        raise InvalidRequest(f"request {message['request_id']}: {faults(error)}") from None


def _check_local(local: dict[str, Any]) -> None:
    for name in ("timeout", "delay", "idempotency_ttl"):
        value = local.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRequest(f"{name}: {value!r:.100} is not a number of seconds")
        if not abs(value) <= _LONGEST:  # also what is no number, or so large that it cannot even be written
            raise InvalidRequest(f"{name}: give seconds, of ten years at most")
        if value < 0 or (value == 0 and name != "delay"):
            least = "0 seconds or more" if name == "delay" else "more than 0 seconds"
            raise InvalidRequest(f"{name}: {value!r} must be {least}")
    for name in ("workflow", "job_id"):
        if not isinstance(local.get(name), str | None):
            raise InvalidRequest(f"{name}: {local[name]!r:.100} is not a text")
    key = local.get("idempotency_key")
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= 500):
        raise InvalidRequest("idempotency_key: use 1 to 500 characters")
    moment = local.get("not_before")
    if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
        raise InvalidRequest(f"not_before: {moment!r} must be a datetime with a time zone")
    if moment is not None and moment.timestamp() - time.time() > _LONGEST:
        raise InvalidRequest(f"not_before: {moment} is more than ten years ahead")
    if moment is not None and "delay" in local:
        raise InvalidRequest("give delay or not_before, not both")


def _lead(local: dict[str, Any]) -> float:
    if "not_before" in local:
        moment: datetime = local["not_before"]
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return float(local.get("delay", 0))
