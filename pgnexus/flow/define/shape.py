"""How a flow is told to the database: the shape that decides on its version, and what is shown of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pgnexus.flow.define.options import FlowOptions, StepOptions
from pgnexus.flow.define.step import Step, WaitStep


def shape_of(steps: Iterable[Step], options: FlowOptions) -> dict[str, Any]:
    """The contract's shape: two flows of one shape are one version, whatever their options are."""
    return {
        "steps": [_step_shape(step) for step in steps],
        "options": {
            "maxAttempts": options.max_attempts,
            "baseDelay": options.base_delay,
            "timeout": options.timeout,
        },
    }


def _step_shape(step: Step) -> dict[str, Any]:
    options = step.options
    return {
        "slug": step.slug,
        "stepType": "map" if step.is_map else "single",
        "dependencies": sorted(step.depends_on),
        "whenUnmet": options.when_unmet,
        "whenExhausted": options.when_exhausted,
        "requiredInputPattern": _pattern(options.only_if),
        "forbiddenInputPattern": _pattern(options.unless),
        "options": _options(options),
    } | ({"handler": step.handler_name} if step.handler_name is not None else {})


def _pattern(pattern: dict[str, Any] | None) -> dict[str, Any]:
    return {"defined": False} if pattern is None else {"defined": True, "value": pattern}


def _options(options: StepOptions) -> dict[str, Any]:
    given = {
        "maxAttempts": options.max_attempts,
        "baseDelay": options.base_delay,
        "timeout": options.timeout,
        "startDelay": options.start_delay,
    }
    return {name: value for name, value in given.items() if value is not None}


def description_of(name: str, steps: Iterable[Step]) -> dict[str, Any]:
    """What people are shown of a flow; never compared."""
    return {"name": name, "steps": [_step_description(step) for step in steps]}


def _step_description(step: Step) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "slug": step.slug,
        "kind": step.kind,
        "is_map": step.is_map,
        "depends_on": list(step.depends_on),
        "pure": step.pure,
        "transactional": step.transactional,
        "doc": step.doc,
    }
    if isinstance(step, WaitStep):
        shown |= {"timeout": step.timeout, "returns": step.output.json_schema()}
    if step.handler_name is not None:
        shown["handler"] = step.handler_name
    return shown
