"""The wire: what both sides share, and all that they share. docs/wire.md is its contract.

A request travels on one of three lanes, a result on the queue its request names in ``reply_to``.
Fields that nobody knows are kept, not refused.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from pgnexus.complexity import TASK_COMPLEXITY as TASK_COMPLEXITY
from pgnexus.complexity import AskedComplexity as AskedComplexity
from pgnexus.complexity import Complexity as Complexity
from pgnexus.complexity import complexity_for as complexity_for
from pgnexus.complexity import resolve_complexity

WIRE_VERSION: Final = 1

Priority = Literal["interactive", "standard", "batch"]
ApiVersion = Literal["chat_completions", "responses"]
Status = Literal["success", "failed", "timeout", "cancelled"]

REQUEST_QUEUES: Final[dict[Priority, str]] = {
    "interactive": "ai_requests_interactive",
    "standard": "ai_requests",
    "batch": "ai_requests_batch",
}
RESULT_QUEUE: Final = "ai_results"

# NOTIFY channels; a payload is request ids joined by commas, or empty.
REQUESTS_CHANNEL: Final = "pgnexus_requests"
RESULTS_CHANNEL: Final = "pgnexus_results"
DONE_CHANNEL: Final = "pgnexus_done"
CANCEL_CHANNEL: Final = "pgnexus_cancel"
CHUNKS_CHANNEL: Final = "pgnexus_chunks"


def new_request_id() -> UUID:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


class ToolCall(BaseModel):
    """A function the model wants called; ``function.arguments`` is JSON text."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["function"] = "function"
    function: dict[str, Any]


class Message(BaseModel):
    """One message of a conversation, in the form of OpenAI's chat completions."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a message of role {self.role} needs content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role tool needs tool_call_id")
        if self.content == []:
            raise ValueError("content is a list of parts without any")
        for i, part in enumerate(self.content if isinstance(self.content, list) else ()):
            if not isinstance(part.get("type"), str):
                raise ValueError(f"content[{i}] needs a type, such as text or image_url")
        if self.role != "tool" and not self.tool_calls and _is_blank(self.content):
            raise ValueError("content is blank")
        return self


def _is_blank(content: str | list[dict[str, Any]] | None) -> bool:
    if isinstance(content, str):
        return not content.strip()
    texts = [part.get("text") if part["type"] == "text" else part for part in content or ()]
    return all(isinstance(text, str) and not text.strip() for text in texts)


def _json_text(value: Any) -> Any:
    """tools and response_format travel as JSON text, since jsonb reorders keys; objects are taken too."""
    if isinstance(value, str):
        try:
            return from_json(value)
        except ValueError as error:
            raise ValueError(f"is not JSON text: {error}") from None
    return value


class LLMRequest(BaseModel):
    """What travels on a request lane. Absent means unset."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    v: Literal[1] = 1
    request_id: UUID
    messages: list[Message] = Field(min_length=1)
    task_type: str | None = Field(None, min_length=1, max_length=200)
    complexity: AskedComplexity | None = None
    model: str = Field("auto", min_length=1, max_length=300)
    provider: str = Field("auto", min_length=1, max_length=100)
    api_version: ApiVersion | None = None
    agent_id: str | None = Field(None, min_length=1, max_length=200)
    reply_to: str = Field(RESULT_QUEUE, pattern=r"^[a-z0-9_]{1,47}$")
    deadline: AwareDatetime | None = None
    priority: Priority = "standard"
    traceparent: str | None = Field(None, max_length=200)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stop: str | Annotated[list[str], Field(min_length=1)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    retry_of: UUID | None = None
    stream: bool = False
    cache: float | None = Field(None, gt=0)
    single_flight: bool = False

    _tools_as_text = field_validator(
        "tools", mode="before", json_schema_input_type=str | list[dict[str, Any]] | None
    )(_json_text)
    _format_as_text = field_validator(
        "response_format", mode="before", json_schema_input_type=str | dict[str, Any] | None
    )(_json_text)

    @field_validator("deadline", mode="before")
    @classmethod
    def _date_and_time(cls, value: Any) -> Any:
        if not isinstance(value, datetime | None) and not (isinstance(value, str) and ":" in value):
            raise ValueError("must be a date and time with its offset, such as 2030-01-31T12:00:00Z")
        return value

    @field_validator("model")
    @classmethod
    def _no_complexity(cls, value: str) -> str:
        if value in get_args(Complexity):
            raise ValueError(f"{value!r} is a complexity, not a model's name; give it as the complexity")
        return value

    @field_validator("response_format")
    @classmethod
    def _known_format(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") not in ("text", "json_object", "json_schema"):
            raise ValueError("its type must be text, json_object or json_schema")
        return value

    @property
    def effective_complexity(self) -> Complexity:
        """The one that is asked for; for ``auto`` and for none the one that task type or messages stand for."""
        return resolve_complexity(self.complexity, self.task_type, self.messages, tools=bool(self.tools))

    @property
    def has_images(self) -> bool:
        return any(
            part.get("type") in ("image_url", "input_image")
            for message in self.messages
            if isinstance(message.content, list)
            for part in message.content
        )


def faults(error: ValidationError) -> str:
    """What is wrong with a message, in one line: the first five fields at fault."""
    return "; ".join(
        f"{_path(fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}" for fault in error.errors()[:5]
    )


def _path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return path if len(path) <= 100 else f"{path[:100]}…"


class Usage(BaseModel):
    """Tokens; those read from the vendor's cache and those written to it are among the prompt's, those of reasoning
    among the completion's.
    """

    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)
    total_tokens: int = Field(0, ge=0)
    cached_tokens: int = Field(0, ge=0)
    cache_write_tokens: int = Field(0, ge=0)
    reasoning_tokens: int = Field(0, ge=0)


class ResultError(BaseModel):
    """Why a request did not succeed; ``type`` is a name of pgnexus.errors."""

    type: str
    message: str
    retryable: bool = False


Cost = Annotated[Decimal, PlainSerializer(lambda cost: format(cost, "f"), return_type=str, when_used="json")]


class LLMResult(BaseModel):
    """The outcome of one request, as it travels on ``reply_to`` and as callers get it.

    ``cost`` is in US dollars, None when the price is not known, and ``estimated`` when a part of it is no vendor's
    own figure; ``latency_ms`` is milliseconds from the moment a worker took the request up until its end.
    ``cached`` says that the answer is one given before, ``shared`` that another request of the same words got it
    at the same time.
    """

    model_config = ConfigDict(extra="allow")

    request_id: UUID
    status: Status
    agent_id: str | None = None
    response: str | None = None
    message: dict[str, Any] | None = None
    model: str | None = None
    provider: str | None = None
    usage: Usage = Field(default_factory=Usage)
    cost: Cost | None = None
    estimated: bool = False
    latency_ms: int | None = None
    attempts: int = 0
    cached: bool = False
    shared: bool = False
    finish_reason: str | None = None
    error: ResultError | None = None
    timestamp: datetime | None = None

    @model_validator(mode="after")
    def _whole_message(self) -> LLMResult:
        """The wire leaves the text out of ``message``, so that no answer travels twice; here it is whole."""
        if self.response is not None and "content" not in (self.message or {}):
            self.message = {"role": "assistant", **(self.message or {}), "content": self.response}
        return self

    @property
    def text(self) -> str:
        """The answer's text; empty when the answer is only tool calls, or none."""
        return self.response or ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls the model asks for, in the form of OpenAI's chat completions."""
        calls = (self.message or {}).get("tool_calls")
        return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []

    @property
    def ok(self) -> bool:
        return self.status == "success"


class ModelInfo(NamedTuple):
    """A model of a live nexus instance; ``reason`` says why it cannot be used now."""

    provider: str
    model: str
    usable: bool
    reason: str | None
