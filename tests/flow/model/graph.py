"""What a property test draws: a flow's graph, and for each run its input and what every task's handler does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["single", "map"]
Policy = Literal["fail", "skip", "skip-cascade"]


class Absent:
    """The output of a handler that gives SQL's NULL: nothing, which is not JSON's null."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


@dataclass(frozen=True)
class Step:
    slug: str
    deps: tuple[str, ...] = ()
    kind: Kind = "single"
    required: Any = None
    forbidden: Any = None
    when_unmet: Policy = "skip"
    when_exhausted: Policy = "fail"
    max_attempts: int = 1


@dataclass(frozen=True)
class Graph:
    """Steps in the order of their definition: a step comes after those it depends on."""

    steps: tuple[Step, ...]

    def step(self, slug: str) -> Step:
        return next(step for step in self.steps if step.slug == slug)

    def children(self, slug: str) -> list[Step]:
        return [step for step in self.steps if slug in step.deps]

    def ancestors(self, slug: str) -> set[str]:
        deps = self.step(slug).deps
        return set(deps).union(*(self.ancestors(dep) for dep in deps))

    @property
    def leaves(self) -> list[Step]:
        return [step for step in self.steps if not self.children(step.slug)]


@dataclass(frozen=True)
class TaskPlan:
    """A handler that raises ``errors`` times and then gives ``output``; it gets as often as its step allows."""

    errors: int = 0
    output: Any = None


@dataclass(frozen=True)
class Scenario:
    """One run: its input, and the plans of each step's tasks (taken in turn when there are more tasks)."""

    input: Any
    plans: Mapping[str, tuple[TaskPlan, ...]]

    def plan(self, step_slug: str, task_index: int) -> TaskPlan:
        plans = self.plans.get(step_slug, (TaskPlan(),))
        return plans[task_index % len(plans)]


def plain(value: Any) -> Any:
    """The value as part of another JSON value."""
    return None if value is ABSENT else value


def text(value: Any) -> str:
    """One spelling of a JSON value, in which 1 is not True."""
    return json.dumps(plain(value), sort_keys=True)


def contains(value: Any, pattern: Any) -> bool:
    """Postgres's ``value @> pattern`` for a pattern that is an object at its top."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(
            key in value and contains(value[key], inner) for key, inner in pattern.items()
        )
    if isinstance(pattern, list):
        return isinstance(value, list) and all(
            any(contains(found, inner) for found in value) for inner in pattern
        )
    return not isinstance(value, (dict, list)) and text(value) == text(pattern)
