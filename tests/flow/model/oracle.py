"""What the engine must make of a run, in a few lines: no rows, no locks, no order of events.

What a step becomes depends only on what its parents became, so a run's end follows from one walk through the
graph. Where a step fails its run, the walk goes on beside it: the run fails whatever the order, but which of
the other steps came to their end before that is open, and nothing is said of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tests.flow.model.graph import ABSENT, Graph, Scenario, Step, contains, plain

Status = Literal["completed", "skipped", "failed", "unreached"]
UNMET = "Condition not met"
JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


@dataclass(frozen=True)
class StepEnd:
    """What a step ends as; `unreached` behind a step that fails the run."""

    status: Status
    skip_reason: str | None = None
    output: Any = ABSENT
    tasks: int = 0
    inputs: tuple[Any, ...] = ()
    errors: frozenset[str] = frozenset()
    cascades: bool = False
    exhausted: bool = False


@dataclass(frozen=True)
class Outcome:
    steps: dict[str, StepEnd] = field(default_factory=dict)
    output: Any = ABSENT

    @property
    def culprits(self) -> set[str]:
        """The steps each of which would fail the run; one of them does."""
        return {slug for slug, end in self.steps.items() if end.status == "failed"}

    @property
    def status(self) -> str:
        return "failed" if self.culprits else "completed"


def predict(graph: Graph, scenario: Scenario) -> Outcome:
    """How a run of this graph ends, in any order of events."""
    steps: dict[str, StepEnd] = {}
    for step in graph.steps:
        steps[step.slug] = _end(graph, scenario, step, [steps[dep] for dep in step.deps])
    leaves = {leaf.slug: plain(steps[leaf.slug].output) for leaf in graph.leaves
              if steps[leaf.slug].status == "completed"}  # fmt: skip
    failed = any(end.status == "failed" for end in steps.values())
    return Outcome(steps, ABSENT if failed or not leaves else leaves)


def _end(graph: Graph, scenario: Scenario, step: Step, parents: list[StepEnd]) -> StepEnd:
    if any(parent.cascades for parent in parents):
        return StepEnd("skipped", "dependency_skipped", cascades=True)
    if any(parent.status in ("failed", "unreached") for parent in parents):
        return StepEnd("unreached")
    outputs = {dep: plain(parent.output) for dep, parent in zip(step.deps, parents, strict=True)
               if parent.status == "completed"}  # fmt: skip
    if not _met(step, outputs if step.deps else scenario.input):
        if step.when_unmet == "fail":
            return StepEnd("failed", errors=frozenset({UNMET}))
        return StepEnd("skipped", "condition_unmet", cascades=step.when_unmet == "skip-cascade")
    return _run(graph, scenario, step, outputs)


def _met(step: Step, value: Any) -> bool:
    required = step.required is None or contains(value, step.required)
    return required and (step.forbidden is None or not contains(value, step.forbidden))


def _run(graph: Graph, scenario: Scenario, step: Step, outputs: dict[str, Any]) -> StepEnd:
    """What comes of a step's tasks."""
    if step.kind == "single":
        inputs = [outputs]
    elif step.deps:
        inputs = next(iter(outputs.values()), [])  # a parent that was skipped gives a map nothing to do
    else:
        inputs = scenario.input
    plans = [scenario.plan(step.slug, index) for index in range(len(inputs))]
    known: dict[str, Any] = {"tasks": len(inputs), "inputs": tuple(inputs)}
    errors = frozenset(
        error_of(step.slug, index) for index, plan in enumerate(plans) if plan.errors >= step.max_attempts
    )
    if errors:
        if step.when_exhausted == "fail":
            return StepEnd("failed", errors=errors, exhausted=True, **known)
        cascades = step.when_exhausted == "skip-cascade"
        return StepEnd("skipped", "handler_failed", errors=errors, cascades=cascades, exhausted=True, **known)
    if step.kind == "map":
        return StepEnd("completed", output=[plain(plan.output) for plan in plans], **known)
    output = plans[0].output
    if not isinstance(output, list) and any(child.kind == "map" for child in graph.children(step.slug)):
        wrong = f"[TYPE_VIOLATION] Produced {JSON_TYPES.get(type(output), 'null')} instead of array"
        return StepEnd("failed", errors=frozenset({wrong}), **known)
    return StepEnd("completed", output=output, **known)


def error_of(step_slug: str, task_index: int) -> str:
    """What the handler of this task raises, when it does."""
    return f"boom in {step_slug}[{task_index}]"
