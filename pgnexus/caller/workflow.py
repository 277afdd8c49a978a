"""`LlmRequest`: one LLM call as a flow, by which other flows and programs ask without waiting in a worker."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, model_validator

from pgnexus.errors import StepFailed
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.prompt import Prompt, deferral
from pgnexus.messages import AskedComplexity, LLMResult, Priority, complexity_for

WORKFLOW: Final = "LlmRequest"  # in job_results

LlmRequest = Flow("llm_request")


class LLMCall(BaseModel):
    """What `LlmRequest` is started with: a ``prompt``, perhaps with a ``system`` message, or ``messages``.

    The other fields are those of `LLMService.call`; ``timeout`` is in seconds.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    system: str | None = None
    messages: list[dict[str, Any]] | None = None
    complexity: AskedComplexity | None = None
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
    priority: Priority | None = None
    timeout: float | None = None

    @model_validator(mode="after")
    def _can_be_asked(self) -> LLMCall:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages, and not both")
        try:
            deferral(self.to_prompt(), {}, "result")
        except StepFailed as error:
            raise ValueError(str(error)) from None
        return self

    def to_prompt(self) -> Prompt:
        """The request that the LLM step makes of it."""
        given = self.model_dump(exclude={"prompt", "messages"})
        return Prompt(self.messages or [] if self.prompt is None else self.prompt, **given)


@LlmRequest.step(pure=True)
def receive_request(input: LLMCall) -> LLMCall:
    """Take the request in; one that cannot be asked fails here."""
    return input


@LlmRequest.step(pure=True)
def select_model(receive_request: LLMCall) -> LLMCall:
    """Say how hard the task is, and leave the model to the router unless one is named."""
    asked = receive_request
    return asked.model_copy(
        update={
            "complexity": asked.complexity or complexity_for(asked.task_type),
            "model": asked.model or "auto",
            "provider": asked.provider or "auto",
        }
    )


@LlmRequest.llm(returns=LLMResult)
def call_llm_provider(select_model: LLMCall) -> Prompt:
    """Ask; nobody waits in a worker until the answer is there."""
    return select_model.to_prompt()


@LlmRequest.step(pure=True)
def publish_result(call_llm_provider: LLMResult) -> LLMResult:
    """Give the result as the run's output."""
    return call_llm_provider
