"""Flows composed at run time, by a model for instance: from JSON, of allowed actions, within limits."""

from __future__ import annotations

from typing import Any

from pgnexus.errors import InvalidFlow
from pgnexus.flow.built.actions import Actions
from pgnexus.flow.built.description import Description, Limits, read
from pgnexus.flow.built.description_schema import schema_of
from pgnexus.flow.built.maker import Maker
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.define.options import FlowOptions


class BuiltFlow(Blueprint):
    """A flow that was made of a description; used as a `Flow` is."""

    def __init__(self, name: str, description: dict[str, Any]) -> None:
        super().__init__(name, FlowOptions(max_attempts=3, base_delay=5, timeout=60))
        self.description = description

    def definition(self) -> dict[str, Any]:
        """What is shown of the flow, and its whole description, of which `FlowBuilder.load` makes it again."""
        return {**super().definition(), "description": self.description}


class FlowBuilder:
    """Makes flows of descriptions: ``{"name": …, "steps": […]}``, each step an action, a prompt or a wait.

    >>> actions = Actions()
    >>> @actions.add
    ... def fetch(url: str) -> str:
    ...     return f"what is at {url}"
    >>> flow = FlowBuilder(actions).build({"name": "digest", "steps": [
    ...     {"slug": "page", "use": "fetch", "with": {"url": "{input.url}"}},
    ...     {"slug": "summary", "prompt": "Sum up in one sentence: {page}"}]})
    >>> flow.steps["summary"].depends_on
    ('page',)
    """

    def __init__(
        self,
        actions: Actions,
        *,
        max_steps: int = Limits.max_steps,
        max_depth: int = Limits.max_depth,
        max_prompt_chars: int = Limits.max_prompt_chars,
        max_bytes: int = Limits.max_bytes,
        max_attempts: int = Limits.max_attempts,
        max_seconds: int = Limits.max_seconds,
    ) -> None:
        self.actions = actions
        self.limits = Limits(max_steps, max_depth, max_prompt_chars, max_bytes, max_attempts, max_seconds)

    def build(self, description: dict[str, Any] | str | bytes) -> BuiltFlow:
        """The flow that a description (an object, or its JSON text) describes.

        Raises one `InvalidFlow` that lists all faults with their places, so that a model can mend them.
        """
        return self._build(description, self.limits)

    def load(self, definition: dict[str, Any]) -> BuiltFlow:
        """The flow of a stored definition; `InvalidFlow` when an action that it uses is not allowed here.

        The limits are not asked: it was within them when it was built.
        """
        description = definition.get("description") if isinstance(definition, dict) else None
        if not isinstance(description, dict):
            raise InvalidFlow("this is no definition of a flow built at run time: it has no description")
        return self._build(description, None)

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of descriptions with these actions and limits, to hand to a model."""
        return schema_of(self.actions, self.limits)

    def _build(self, given: dict[str, Any] | str | bytes, limits: Limits | None) -> BuiltFlow:
        found = read(given, limits)
        flow = BuiltFlow(found.name or "unnamed", found.raw)
        places: dict[str, str] = {}
        for index, described in found.steps.items():
            place = f"steps[{index}]"
            step = Maker(self.actions, found, index).make(described)
            if step is not None:
                flow.add(step)
                places[step.slug] = place
        self._check(found, flow, places, limits)
        found.raise_faults()
        flow.check()
        return flow

    def _check(
        self, found: Description, flow: BuiltFlow, places: dict[str, str], limits: Limits | None
    ) -> None:
        """The faults between steps, as far as the steps themselves are sound."""
        whole = True
        for slug, step in flow.steps.items():
            if not set(step.depends_on) <= flow.steps.keys():
                whole = False  # what is missing has a fault of its own
                continue
            for fault in flow.step_faults(step):
                found.fault(places[slug], fault)
        if not whole or not flow.steps:
            return
        try:
            depth = flow.depth()
        except InvalidFlow as error:
            found.fault("steps", str(error).partition(": ")[2])
            return
        if limits is not None and depth > limits.max_depth:
            found.fault("steps", f"{depth} steps follow each other; {limits.max_depth} may at most")
