"""Flows run in the process, without a database: they end as the engine would end them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pgnexus.errors import InvalidRequest, RetryLater, RunFailed, ServiceMisused, StepFailed
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.inline import InlineStep, contains, run_inline
from pgnexus.flow.define.later import Later
from tests.flow.model.drawing import graphs, scenarios
from tests.flow.model.graph import Graph, Scenario, plain
from tests.flow.model.oracle import error_of, predict


class Page(BaseModel):
    url: str
    size: int = 0


def digest() -> Flow:
    flow = Flow("digest")

    @flow.step
    async def pages(site: str, ctx: Context) -> list[Page]:
        await ctx.progress("half")
        return [Page(url=f"{site}/{n}") for n in range(2)]

    @flow.map(over=pages)
    def sized(page: Page, ctx: Context) -> Page:
        return page.model_copy(update={"size": 10 + ctx.task_index})

    @flow.llm(over=sized)
    def summary(page: Page) -> str:
        return f"Sum up {page.url}"

    flow.wait("approval", depends_on=summary, timeout=5, returns=bool)

    @flow.step
    async def end(sized: list[Page], summary: list[str], approval: bool, ctx: Context) -> dict[str, Any]:
        site = await ctx.flow_input(str)
        return {"site": site, "size": sum(page.size for page in sized), "said": summary, "ok": approval}

    return flow


async def test_a_flow_runs_to_its_end() -> None:
    run = await run_inline(digest(), "x", answers={"summary": ["a", "b"], "approval": False})
    assert run.status == "completed"
    assert run.output == {"site": "x", "size": 21, "said": ["a", "b"], "ok": False}
    assert run.steps["pages"].output == [{"url": "x/0", "size": 0}, {"url": "x/1", "size": 0}]
    assert run.steps["pages"].progress == ["half"]
    assert run.steps["sized"].attempts == 2


async def test_an_answer_may_be_made_from_what_is_asked() -> None:
    def answer(later: Later) -> str:
        assert later.details is not None
        return later.details["request"]["messages"][0]["content"].upper()

    run = await run_inline(
        digest(), "x", answers={"summary": answer, "approval": lambda later: later.seconds}
    )
    assert run.steps["summary"].output == ["SUM UP X/0", "SUM UP X/1"]
    assert run.steps["approval"].output == 5.0


async def test_a_missing_answer_is_the_tests_fault() -> None:
    with pytest.raises(ServiceMisused, match=r"step summary waits .* \(llm\); give answers=\{'summary'"):
        await run_inline(digest(), "x")


async def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="step pages: input: "):
        await run_inline(digest(), 3)


@pytest.mark.parametrize(
    ("error", "attempts", "said"),
    [
        (ValueError("no"), 3, "ValueError: no"),
        (RetryLater("soon", delay=99), 3, "RetryLater: soon"),
        (StepFailed("never"), 1, "StepFailed: never"),
    ],
    ids=["any", "later", "final"],
)
async def test_attempts_are_those_of_the_flow(error: Exception, attempts: int, said: str) -> None:
    flow = Flow("f")
    seen: list[int] = []

    @flow.step
    def a(ctx: Context) -> None:
        seen.append(ctx.attempt)
        raise error

    @flow.step(depends_on=a)
    def b() -> None:
        pass

    run = await run_inline(flow)
    assert seen == list(range(1, attempts + 1))
    assert run.status == "failed"
    assert run.steps["a"] == InlineStep("failed", error=said, attempts=attempts)
    assert run.steps["b"].status == "created"
    with pytest.raises(RunFailed, match=f"run {run.run_id}: step a: {said}"):
        _ = run.output


async def test_an_output_that_is_not_json_fails_its_step() -> None:
    flow = Flow("f")
    flow.step(slug="a")(lambda: {1})
    run = await run_inline(flow)
    assert run.steps["a"].error == "InvalidOutput: step a: output: a set is not JSON"
    assert run.steps["a"].attempts == 1


def as_flow(graph: Graph, scenario: Scenario) -> Flow:
    """A drawn graph as a flow whose handlers do what was drawn for them."""
    flow = Flow("drawn")
    for drawn in graph.steps:
        options: dict[str, Any] = {
            "slug": drawn.slug,
            "max_attempts": drawn.max_attempts,
            "only_if": drawn.required,
            "unless": drawn.forbidden,
            "when_unmet": drawn.when_unmet,
            "when_exhausted": drawn.when_exhausted,
        }
        single, mapped = handlers(drawn.slug, scenario)
        if drawn.kind == "map":
            flow.map(over=drawn.deps[0] if drawn.deps else None, **options)(mapped)
        else:
            flow.step(depends_on=drawn.deps, **options)(single)
    return flow


def handlers(slug: str, scenario: Scenario) -> tuple[Any, Any]:
    async def single(ctx: Context) -> Any:
        plan = scenario.plan(slug, ctx.task_index)
        if ctx.attempt <= plan.errors:
            raise ValueError(error_of(slug, ctx.task_index))
        return plain(plan.output)

    async def mapped(element: Any, ctx: Context) -> Any:
        return await single(ctx)

    return single, mapped


@settings(deadline=None)
@given(st.data())
async def test_runs_end_as_the_model_of_the_engine_says(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    scenario = data.draw(scenarios(graph))
    expected = predict(graph, scenario)
    run = await run_inline(as_flow(graph, scenario), scenario.input)
    assert run.status == expected.status
    if run.status == "failed":
        [failed] = [slug for slug, step in run.steps.items() if step.status == "failed"]
        assert failed in expected.culprits
        return
    for slug, end in expected.steps.items():
        state = run.steps[slug]
        assert (state.status, state.skip_reason) == (end.status, end.skip_reason)
        if end.status == "completed":
            assert json.dumps(state.output) == json.dumps(plain(end.output))
    leaves = expected.output if isinstance(expected.output, dict) else {}
    assert run.output == (leaves.get(graph.leaves[0].slug) if len(graph.leaves) == 1 else leaves)


@pytest.mark.parametrize(
    ("value", "pattern", "is_there"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 0}, {"a": False}, False),
        ({"a": None}, {"a": None}, True),
        ({}, {"a": None}, False),
        ({"a": [1, [2, 3]]}, {"a": [[3]]}, True),
        ({"a": [1]}, {"a": 1}, False),
        ({"a": {"b": []}}, {"a": {"b": []}}, True),
        ({"a": {}}, {"a": []}, False),
        ([], {}, False),
        ({"a": 1.0}, {"a": 1}, True),
    ],
)
async def test_conditions_are_postgres_containment(db: Any, value: Any, pattern: Any, is_there: bool) -> None:
    assert contains(value, pattern) is is_there
    async with db.connection() as connection:
        cursor = await connection.execute(
            "select %s::jsonb @> %s::jsonb", [json.dumps(value), json.dumps(pattern)]
        )
        assert (await cursor.fetchone())[0] is is_there
