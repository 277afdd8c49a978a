"""The model that the property test believes: cases by hand, each a sentence of the engine's contract."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.model.drawing import graphs, scenarios
from tests.flow.model.graph import ABSENT, Graph, Scenario, Step, TaskPlan, contains
from tests.flow.model.oracle import Outcome, predict

FAILS = TaskPlan(errors=99)


def run(*steps: Step, input: Any = None, **outputs: Any) -> Outcome:
    """The outcome where each step named gives this output; a `TaskPlan`, or a tuple of such for a map."""
    plans = {}
    for slug, gives in outputs.items():
        several = gives if isinstance(gives, tuple) else (gives,)
        plans[slug] = tuple(one if isinstance(one, TaskPlan) else TaskPlan(output=one) for one in several)
    return predict(Graph(steps), Scenario(input if input is not None else {}, plans))


def states(outcome: Outcome) -> dict[str, str]:
    return {slug: end.skip_reason or end.status for slug, end in outcome.steps.items()}


def test_a_run_gives_the_outputs_of_its_leaves() -> None:
    outcome = run(Step("a"), Step("b", ("a",)), Step("c", ("a",)), a=1, b=False, c=None)
    assert (outcome.status, outcome.output) == ("completed", {"b": False, "c": None})
    assert outcome.steps["b"].inputs == ({"a": 1},)
    assert outcome.steps["a"].inputs == ({},)


def test_maps_go_over_the_input_an_array_and_a_map() -> None:
    outcome = run(
        *(Step("root", kind="map"), Step("over", ("root",), kind="map"), Step("one", ("over",))),
        *(Step("list"), Step("each", ("list",), kind="map")),
        input=["p", "q"], root=(0, None), over=("", ABSENT), one=5, list=[7], each=8,
    )  # fmt: skip
    assert outcome.steps["root"].inputs == ("p", "q")
    assert outcome.steps["over"].inputs == (0, None)
    assert outcome.steps["one"].inputs == ({"over": ["", None]},)
    assert outcome.steps["each"].inputs == (7,)
    assert outcome.output == {"one": 5, "each": [8]}


def test_an_empty_array_leaves_maps_without_tasks() -> None:
    outcome = run(
        Step("a", kind="map"), Step("b", ("a",), kind="map"), Step("c", ("b",)), input=[], a=FAILS, c=1
    )
    assert states(outcome) == dict.fromkeys("abc", "completed")
    assert (outcome.steps["b"].output, outcome.steps["b"].tasks, outcome.output) == ([], 0, {"c": 1})


@pytest.mark.parametrize(
    ("output", "kind"), [(1, "number"), (None, "null"), (ABSENT, "null"), ({}, "object")]
)
def test_a_map_over_no_array_fails_the_run(output: Any, kind: str) -> None:
    outcome = run(Step("a", when_exhausted="skip"), Step("b", ("a",), kind="map"), Step("c"), a=output, c=1)
    assert (outcome.status, outcome.culprits, outcome.output) == ("failed", {"a"}, ABSENT)
    assert outcome.steps["a"].errors == {f"[TYPE_VIOLATION] Produced {kind} instead of array"}
    assert states(outcome) == {"a": "failed", "b": "unreached", "c": "completed"}


def test_what_a_map_gives_to_a_map_may_be_anything() -> None:
    assert run(Step("a", kind="map"), Step("b", ("a",), kind="map"), input=[1], a=None).status == "completed"


@pytest.mark.parametrize(("errors", "ends"), [(0, "completed"), (2, "completed"), (3, "failed")])
def test_a_task_has_as_many_attempts_as_its_step_says(errors: int, ends: str) -> None:
    assert run(Step("a", max_attempts=3), a=TaskPlan(errors, "x")).status == ends


def test_an_exhausted_step_that_is_skipped_is_missing_below() -> None:
    outcome = run(
        *(Step("a", when_exhausted="skip"), Step("b"), Step("c", ("a", "b")), Step("m", ("a",), kind="map")),
        a=FAILS, b=1, c=2,
    )  # fmt: skip
    assert states(outcome) == {"a": "handler_failed", "b": "completed", "c": "completed", "m": "completed"}
    assert outcome.steps["c"].inputs == ({"b": 1},)
    assert outcome.output == {"c": 2, "m": []}


def test_a_cascade_skips_everything_below_once() -> None:
    outcome = run(
        Step("a", when_exhausted="skip-cascade"), Step("o"), Step("b", ("a",)), Step("c", ("a", "o")),
        Step("d", ("b", "c")), a=FAILS, o=1,
    )  # fmt: skip
    assert states(outcome) == {"a": "handler_failed", "o": "completed"} | dict.fromkeys(
        "bcd", "dependency_skipped"
    )
    assert (outcome.status, outcome.output) == ("completed", ABSENT)


def test_one_task_of_a_map_exhausts_the_step() -> None:
    outcome = run(Step("a", kind="map", when_exhausted="skip"), input=[1, 2], a=(1, FAILS))
    assert states(outcome) == {"a": "handler_failed"}
    assert outcome.steps["a"].errors == {"boom in a[1]"}


@pytest.mark.parametrize(
    ("policy", "state", "below"),
    [("skip", "condition_unmet", "completed"), ("skip-cascade", "condition_unmet", "dependency_skipped"),
     ("fail", "failed", "unreached")],
)  # fmt: skip
@pytest.mark.parametrize("pattern", [{"required": {"x": 2}}, {"forbidden": {"x": 1}}])
def test_an_unmet_condition(policy: Any, state: str, below: str, pattern: Any) -> None:
    outcome = run(Step("a", when_unmet=policy, **pattern), Step("b", ("a",)), input={"x": 1, "y": 0}, b=1)
    assert states(outcome) == {"a": state, "b": below}
    assert outcome.status == ("failed" if policy == "fail" else "completed")


def test_a_condition_below_sees_the_outputs_of_what_was_completed() -> None:
    skipped = Step("a", when_exhausted="skip")
    below = Step("c", ("a", "b"), required={"b": {"k": []}}, forbidden={"a": None})
    assert states(run(skipped, Step("b"), below, a=FAILS, b={"k": [1]}))["c"] == "completed"
    assert states(run(skipped, Step("b"), below, a=None, b={"k": [1]}))["c"] == "condition_unmet"
    assert states(run(skipped, Step("b"), below, a=FAILS, b={"k": 1}))["c"] == "condition_unmet"


def test_containment_is_that_of_jsonb() -> None:
    assert contains({"a": [1, {"b": 2, "c": 3}]}, {"a": [{"b": 2}]})
    assert contains({"a": [1]}, {"a": []})
    assert contains({}, {})
    for value, pattern in [([], {}), ({"a": 1}, {"a": True}), ({"a": [1]}, {"a": 1}), ({}, {"a": None})]:
        assert not contains(value, pattern)


@given(st.data())
@settings(max_examples=50, derandomize=True, deadline=None, database=None)
def test_every_step_of_a_completed_run_has_an_end(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    outcome = predict(graph, data.draw(scenarios(graph)))
    ends = {end.status for end in outcome.steps.values()}
    if outcome.status == "completed":
        assert ends <= {"completed", "skipped"}
    else:
        assert outcome.culprits
        assert outcome.output is ABSENT
