"""A flow's steps in the order in which they can run, checked: what executor and worker need of it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from typing import Any

from pgnexus.errors import InvalidFlow, InvalidOutput, InvalidRequest
from pgnexus.flow.define.options import FlowOptions, check_slug
from pgnexus.flow.define.shape import description_of, shape_of
from pgnexus.flow.define.step import Step
from pgnexus.flow.define.values import Misfit, dump, name_of


class Blueprint:
    """A named set of steps. Its check runs once, when somebody first needs the whole."""

    def __init__(self, name: str, options: FlowOptions) -> None:
        self.name = check_slug("flow", name)
        self.options = options
        self._steps: dict[str, Step] = {}
        self._checked = False

    @property
    def steps(self) -> dict[str, Step]:
        """By slug, dependencies first, else in the order of their definition."""
        return self._steps

    @property
    def leaves(self) -> list[Step]:
        """The steps that no other depends on: their outputs are the run's."""
        needed = {slug for step in self._steps.values() for slug in step.depends_on}
        return [step for step in self._steps.values() if step.slug not in needed]

    def check(self) -> None:
        """Raise `InvalidFlow` that names the step at fault, and says what to do."""
        if self._checked:
            return
        if not self._steps:
            raise InvalidFlow(f"flow {self.name}: it has no steps; add one with @flow.step")
        self._raise_first(self.dependency_faults)
        self._sort()
        self._raise_first(self.step_faults)
        self._checked = True

    def shape(self) -> dict[str, Any]:
        """What is compared with the versions in the database, and the options that are applied."""
        self.check()
        return shape_of(self._steps.values(), self.options)

    def definition(self) -> dict[str, Any]:
        """What is shown of the flow: kinds of steps, what they depend on, their first lines."""
        self.check()
        return description_of(self.name, self._steps.values())

    def encode_input(self, value: Any, max_bytes: int | None = None) -> str:
        """The JSON text of a run's input; `InvalidRequest` when a root step could not take it."""
        self.check()
        try:
            text = dump(value, f"flow {self.name}: input", max_bytes)
            plain = json.loads(text)
            for step in self._steps.values():
                if not step.depends_on:
                    step.check_flow_input(plain)
        except InvalidOutput as error:
            raise InvalidRequest(str(error)) from None
        except Misfit as error:
            raise InvalidRequest(f"flow {self.name}, step {step.slug}: {error}") from None
        return text

    def decode_output(self, value: Any) -> Any:
        """A run's output as annotated: ``{leaf: output}``, or that one output of a flow with one leaf.

        Leaves that were skipped are missing in it; it is None when the only leaf was.
        """
        self.check()
        leaves = self.leaves
        given = value if isinstance(value, dict) else {}
        try:
            outputs = {
                leaf.slug: leaf.decode_output(given[leaf.slug]) for leaf in leaves if leaf.slug in given
            }
        except Misfit as error:
            raise InvalidOutput(f"flow {self.name}: {error}") from None
        return outputs.get(leaves[0].slug) if len(leaves) == 1 else outputs

    def _where(self, slug: str) -> str:
        return f"flow {self.name}, step {slug}"

    def add(self, step: Step) -> None:
        """Take another step in; its slug must be new."""
        if step.slug in self._steps:
            raise InvalidFlow(f"{self._where(step.slug)}: there is such a step already; rename one of them")
        self._steps[step.slug] = step
        self._checked = False

    def depth(self) -> int:
        """How many steps follow each other on the longest way; `InvalidFlow` when they go round in a circle."""
        self._sort()
        depths: dict[str, int] = {}
        for step in self._steps.values():
            depths[step.slug] = 1 + max((depths[slug] for slug in step.depends_on), default=0)
        return max(depths.values(), default=0)

    def _raise_first(self, faults: Callable[[Step], Iterator[str]]) -> None:
        for step in self._steps.values():
            for fault in faults(step):
                raise InvalidFlow(f"{self._where(step.slug)}: {fault}")

    def _sort(self) -> None:
        """Dependencies first; what is free of them keeps the order of definition."""
        left = dict(self._steps)
        done: dict[str, Step] = {}
        while left:
            step = next((one for one in left.values() if not left.keys() & set(one.depends_on)), None)
            if step is None:
                circle = " → ".join(_circle(left))
                raise InvalidFlow(f"flow {self.name}: a cycle: {circle}; remove one of these dependencies")
            done[step.slug] = left.pop(step.slug)
        self._steps = done

    def dependency_faults(self, step: Step) -> Iterator[str]:
        """What is wrong with the names of the steps that it depends on."""
        for slug in step.depends_on:
            if slug == step.slug:
                yield "it depends on itself; remove that dependency"
            elif slug not in self._steps:
                close = difflib.get_close_matches(slug, self._steps, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self._steps)}"
                yield f"it depends on {slug!r}, and there is no such step; {hint}"

    def step_faults(self, step: Step) -> Iterator[str]:
        """What is wrong between it and its dependencies, which exist."""
        yield from self._map_faults(step) if step.is_map else self._gap_faults(step)
        if not step.depends_on:
            return
        for name, pattern in (("only_if", step.options.only_if), ("unless", step.options.unless)):
            for key in sorted((pattern or {}).keys() - set(step.depends_on)):
                yield (
                    f"{name} is compared with {{step: output}} of its dependencies "
                    f"({', '.join(step.depends_on)}), and {key!r} is none of them"
                )

    def _map_faults(self, step: Step) -> Iterator[str]:
        if len(step.depends_on) > 1:
            yield (
                f"a map has one dependency at most, but {len(step.depends_on)} were given: "
                f"{', '.join(step.depends_on)}; join them in a step before it"
            )
        for slug in step.depends_on:
            source = self._steps[slug]
            if not source.is_map and not source.output.is_list:
                returned = name_of(source.output.annotation)
                advice = "return [] instead of None" if source.output.allows_none else "let it return a list"
                yield f"it maps over {slug}, which returns {returned}; {advice}"

    def _gap_faults(self, step: Step) -> Iterator[str]:
        for slug in step.depends_on:
            if self._steps[slug].options.may_leave_a_gap and step.needs(slug):
                yield (
                    f"its dependency {slug} can be skipped; give the parameter that takes it a default or allow "
                    f"None, or let {slug} skip with skip-cascade"
                )


def _circle(left: dict[str, Step]) -> list[str]:
    """Slugs along a cycle, the first one again at the end; every step that is left has a dependency left."""
    path: list[str] = []
    slug = next(iter(left))
    while slug not in path:
        path.append(slug)
        slug = next(one for one in left[slug].depends_on if one in left)
    return [*path[path.index(slug) :], slug][::-1]
