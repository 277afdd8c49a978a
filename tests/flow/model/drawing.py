"""Graphs, inputs and plans as hypothesis strategies: small, but with everything in them that the engine knows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.flow.model.graph import ABSENT, Graph, Scenario, Step, TaskPlan

SCALARS = [0, False, "", None, 1, True, "x", {}, [], {"a": 1}, {"a": {"b": None}}, [1], [0, None, ""]]
OUTPUTS = st.sampled_from([*SCALARS, ABSENT])
VALUES = st.sampled_from(SCALARS)
LISTS = st.lists(VALUES, max_size=4)
OBJECTS = [{}, {"a": 1}, {"a": True}, {"a": {"b": None}}, {"a": 1, "b": [1]}, {"b": []}]
NEVER = 99


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    steps: list[Step] = []
    for index in range(draw(st.integers(3, 12))):
        width = draw(st.sampled_from([0, 1, 1, 1, 2, 3]))
        earlier = [step.slug for step in steps]
        deps = tuple(draw(st.permutations(earlier))[: min(width, index)])
        steps.append(
            Step(
                f"s{index}",
                deps,
                kind=draw(st.sampled_from(["single", "map"])) if len(deps) < 2 else "single",
                required=draw(_patterns(deps)),
                forbidden=draw(_patterns(deps)),
                when_unmet=draw(st.sampled_from(["skip"] * 2 + ["skip-cascade"] * 2 + ["fail"])),
                when_exhausted=draw(st.sampled_from(["skip", "skip-cascade", "fail"])),
                max_attempts=draw(st.sampled_from([1, 2, 3, 3])),
            )
        )
    return Graph(tuple(steps))


@st.composite
def _patterns(draw: st.DrawFn, deps: tuple[str, ...]) -> Any:
    """A pattern, mostly none: of the run's input for a root, else of its parents' outputs."""
    if draw(st.integers(0, 7)):
        return None
    if not deps:
        return draw(st.sampled_from(OBJECTS))
    named = draw(st.lists(st.sampled_from(deps), unique=True, max_size=2))
    return {dep: draw(VALUES) for dep in named}


@st.composite
def scenarios(draw: st.DrawFn, graph: Graph) -> Scenario:
    rooted = any(step.kind == "map" and not step.deps for step in graph.steps)
    value = draw(LISTS) if rooted else draw(st.sampled_from([*OBJECTS, 0, "x", None, [1]]))
    return Scenario(value, {step.slug: draw(_plans(graph, step)) for step in graph.steps})


@st.composite
def _plans(draw: st.DrawFn, graph: Graph, step: Step) -> tuple[TaskPlan, ...]:
    outputs = OUTPUTS
    if step.kind == "single" and any(child.kind == "map" for child in graph.children(step.slug)):
        outputs = LISTS if draw(st.integers(0, 9)) else OUTPUTS
    errors = st.sampled_from([0] * 16 + [1, 1, 1, 2, 2, NEVER])
    count = 1 if step.kind == "single" else draw(st.integers(1, 3))
    return tuple(TaskPlan(draw(errors), draw(outputs)) for _ in range(count))
