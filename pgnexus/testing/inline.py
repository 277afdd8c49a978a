"""Beside a test: a flow run in this process, with models and people played by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psycopg import AsyncConnection

from pgnexus.errors import InvalidRequest, ServiceMisused, StepFailed
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.define.inline import InlineRun
from pgnexus.flow.define.inline import run_inline as run_with_answers
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.prompt import Prompt
from pgnexus.testing.answers import output_of, prompt_of

LLM = Callable[[Prompt], Any] | Mapping[str, Any]
_MISSING = object()

__all__ = ["InlineRun", "run_inline"]


async def run_inline(
    flow: Blueprint,
    input: Any = None,
    *,
    llm: LLM | None = None,
    signals: Mapping[Any, Any] | None = None,
    connection: AsyncConnection[Any] | None = None,
    check: bool = True,
) -> InlineRun:
    """Run a flow to its end in this process, step by step: no database, no queue, no waiting.

    Conditions, skips, maps, attempts and failures are the engine's; retries follow at once, timeouts of handlers do
    not count. ``llm`` answers for the models: a function of the `Prompt`, or a mapping by step of such functions
    and answers. A text is what the model says, any other value the output that is made of it; an exception says
    that the request failed. ``signals`` are the payloads that waiting steps get, by step, for a map also by
    (step, task index); an exception in place of one says that nobody answers in time. Transactional steps get
    ``connection``; what a failed attempt did there is for the test to roll back.

    Raises `RunFailed` unless ``check`` is False, `InvalidRequest` for an input or a payload that does not fit,
    `ServiceMisused` when an answer is missing, and whatever ``llm`` raises.

    >>> import asyncio
    >>> from pgnexus.flow.define.graph import Flow
    >>> flow = Flow("greet")
    >>> @flow.llm
    ... def greeting(name: str) -> str:
    ...     return f"Greet {name}"
    >>> run = asyncio.run(run_inline(flow, "Ada", llm=lambda prompt: prompt.prompt + "!"))
    >>> run.output, run.steps["greeting"].status
    ('Greet Ada!', 'completed')
    """
    cast = _Cast(flow, llm, signals or {})
    try:
        run = await run_with_answers(flow, input, answers=cast.answer, connection=connection)
    except ServiceMisused:
        if cast.fault is not None:
            raise cast.fault from None
        raise
    if check:
        _ = run.output  # raises for a run that failed
    return run


class _Cast:
    """Who answers for models and people; ``fault`` is what went wrong in the test's own code."""

    def __init__(self, flow: Blueprint, llm: LLM | None, signals: Mapping[Any, Any]) -> None:
        self._flow = flow
        self._llm = llm
        self._signals = signals
        self.fault: Exception | None = None

    def answer(self, slug: str, index: int, later: Later) -> Any:
        """What a step that waits gets; `ServiceMisused` when the test does not say, or says it wrongly."""
        return self._ask(slug, later) if later.kind == "llm" else self._signal(slug, index, later)

    def _ask(self, slug: str, later: Later) -> Any:
        if isinstance(self._llm, Mapping):
            if slug not in self._llm:
                raise ServiceMisused(f"step {slug} asks a model, and llm has no answer for it")
            answer = self._llm[slug]
        elif self._llm is None:
            raise ServiceMisused(f"step {slug} asks a model; give llm=…, a function of the prompt")
        else:
            answer = self._llm
        details = later.details or {}
        if callable(answer):
            try:
                answer = answer(prompt_of(details))
            except Exception as error:
                raise self._stop(error) from error
        return output_of(slug, details, answer)

    def _signal(self, slug: str, index: int, later: Later) -> Any:
        payload = self._signals.get((slug, index), self._signals.get(slug, _MISSING))
        if payload is _MISSING:
            raise ServiceMisused(f"step {slug} waits for a {later.kind}; give signals={{{slug!r}: …}}")
        if isinstance(payload, Exception):
            raise StepFailed(f"no answer came: {payload}")
        try:
            self._flow.steps[slug].accept(payload)
        except InvalidRequest as error:
            raise self._stop(error) from error
        return payload

    def _stop(self, error: Exception) -> ServiceMisused:
        """The test itself failed: no step shall swallow that."""
        self.fault = error
        return ServiceMisused(str(error))
