"""A flow run in this process, without database and queue: for tests of flows, and to try one out.

The steps' ends, outputs and skips are those of the engine. What needs the engine is left out: nothing is
stored, nothing waits (neither for a retry nor for start_delay), no timeout ends a handler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from psycopg import AsyncConnection

from pgnexus.errors import RunFailed, ServiceMisused, StepFailed
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.options import When
from pgnexus.flow.define.step import Step
from pgnexus.messages import new_request_id

State = Literal["created", "completed", "failed", "skipped"]
Answerer = Callable[[str, int, Later], Any]


@dataclass(slots=True)
class InlineStep:
    """How a step ended; ``output`` is decoded JSON, ``attempts`` are those of all its tasks."""

    status: State = "created"
    output: Any = None
    error: str | None = None
    skip_reason: str | None = None
    attempts: int = 0
    progress: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InlineRun:
    """How a run ended. ``output`` is what `Executor.execute` would return; it raises for a run that failed."""

    run_id: UUID
    status: Literal["completed", "failed"]
    steps: dict[str, InlineStep]
    flow: Blueprint

    @property
    def output(self) -> Any:
        if self.status == "failed":
            slug, step = next((slug, step) for slug, step in self.steps.items() if step.status == "failed")
            raise RunFailed(f"step {slug}: {step.error}", run_id=self.run_id)
        ended = {leaf.slug: self.steps[leaf.slug] for leaf in self.flow.leaves}
        return self.flow.decode_output(
            {slug: step.output for slug, step in ended.items() if step.status == "completed"}
        )


async def run_inline(
    flow: Blueprint,
    input: Any = None,
    *,
    answers: Mapping[str, Any] | Answerer | None = None,
    connection: AsyncConnection[Any] | None = None,
) -> InlineRun:
    """Run a flow to its end, one task after the other.

    ``answers`` are what steps that wait are to get, by slug: a value, or a function of the `Later`; a map
    may have a list with one for each element. Or they are one function of step, task index and `Later`.
    ``connection`` is for transactional steps.

    >>> import asyncio
    >>> from pgnexus.flow.define.graph import Flow
    >>> flow = Flow("greet")
    >>> @flow.llm
    ... def greeting(name: str) -> str:
    ...     return f"Greet {name}"
    >>> asyncio.run(run_inline(flow, "Ada", answers={"greeting": "Hello Ada"})).output
    'Hello Ada'
    """
    run = _Run(flow, json.loads(flow.encode_input(input)), answers or {}, connection)
    for step in flow.steps.values():
        if not await run.take(step):
            return InlineRun(run.run_id, "failed", run.states, flow)
    return InlineRun(run.run_id, "completed", run.states, flow)


class _Run:
    def __init__(
        self,
        flow: Blueprint,
        input: Any,
        answers: Mapping[str, Any] | Answerer,
        connection: AsyncConnection[Any] | None,
    ) -> None:
        self.run_id = new_request_id()
        self.states = {slug: InlineStep() for slug in flow.steps}
        self._flow = flow
        self._input = input
        self._answers = answers
        self._connection = connection
        self._cascading: set[str] = set()

    async def take(self, step: Step) -> bool:
        """Bring a step to its end, its dependencies being at theirs; False when that ends the run."""
        if self._cascading & set(step.depends_on):
            return self._end(step, "skip-cascade", "dependency_skipped", None)
        done = {slug: self.states[slug] for slug in step.depends_on}
        outputs = {slug: state.output for slug, state in done.items() if state.status == "completed"}
        options = step.options
        asked = outputs if step.depends_on else self._input
        required = options.only_if is None or contains(asked, options.only_if)
        if not required or (options.unless is not None and contains(asked, options.unless)):
            return self._end(step, options.when_unmet, "condition_unmet", "Condition not met")
        inputs: list[Any] = [outputs]
        if step.is_map:
            inputs = outputs.get(step.depends_on[0], []) if step.depends_on else self._input
        results = []
        for index, one in enumerate(inputs):
            try:
                results.append(await self._attempt(step, one, index))
            except ServiceMisused:
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                return self._end(step, options.when_exhausted, "handler_failed", said)
        state = self.states[step.slug]
        state.status, state.output = "completed", results if step.is_map else results[0]
        if not isinstance(state.output, list) and self._is_mapped_over(step):
            fault = f"[TYPE_VIOLATION] Produced {_type_of(state.output)} instead of array"
            return self._end(step, "fail", "", fault)
        return True

    def _is_mapped_over(self, step: Step) -> bool:
        return any(one.is_map and step.slug in one.depends_on for one in self._flow.steps.values())

    def _end(self, step: Step, when: When, reason: str, error: str | None) -> bool:
        state = self.states[step.slug]
        state.error = error if when == "fail" or reason == "handler_failed" else None
        if when == "fail":
            state.status = "failed"
            return False
        state.status, state.skip_reason = "skipped", reason
        if when == "skip-cascade":
            self._cascading.add(step.slug)
        return True

    async def _attempt(self, step: Step, input: Any, index: int) -> Any:
        """The output of one task, after as many attempts as it has."""
        state = self.states[step.slug]
        last = step.options.max_attempts or self._flow.options.max_attempts
        root_single = not step.depends_on and not step.is_map
        for attempt in range(1, last + 1):
            state.attempts += 1
            try:
                context = self._context(step, index, attempt)
                answer = await step.call(input, self._input if root_single else None, context)
                if isinstance(answer, Later):
                    answer = self._answer(step, index, answer)
                return json.loads(step.encode(answer))
            except (StepFailed, ServiceMisused):
                raise
            except Exception:
                if attempt == last:
                    raise
        raise AssertionError("unreachable: there is one attempt at least")

    def _answer(self, step: Step, index: int, later: Later) -> Any:
        if callable(self._answers):
            return self._answers(step.slug, index, later)
        if step.slug not in self._answers:
            raise ServiceMisused(
                f"step {step.slug} waits for somebody's answer ({later.kind}); give answers={{{step.slug!r}: …}}"
            )
        answer = self._answers[step.slug]
        if step.is_map and isinstance(answer, list):
            answer = answer[index]
        made: Callable[[Later], Any] | Any = answer
        return made(later) if callable(made) else made

    def _context(self, step: Step, index: int, attempt: int) -> Context:
        async def flow_input() -> Any:
            return self._input

        async def progress(text: str) -> bool:
            self.states[step.slug].progress.append(json.loads(text))
            return True

        return Context(
            run_id=self.run_id,
            flow=self._flow.name,
            step=step.slug,
            task_index=index,
            attempt=attempt,
            flow_input=flow_input,
            progress=progress,
            connection=self._connection if step.transactional else None,
        )


def contains(value: Any, pattern: Any) -> bool:
    """Whether JSON contains a pattern as PostgreSQL's ``@>`` has it.

    >>> contains({"a": [1, {"b": 2, "c": 3}]}, {"a": [{"b": 2}]})
    True
    """
    if isinstance(value, dict) and isinstance(pattern, dict):
        return all(key in value and contains(value[key], part) for key, part in pattern.items())
    if isinstance(value, list) and isinstance(pattern, list):
        return all(any(contains(item, part) for item in value) for part in pattern)
    is_flag = isinstance(value, bool), isinstance(pattern, bool)
    return bool(is_flag[0] == is_flag[1] and not isinstance(pattern, (dict, list)) and value == pattern)


def _type_of(value: Any) -> str:
    names: dict[type, str] = {dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
