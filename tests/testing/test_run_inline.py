"""Flows run in the test's own process, with its answers for models and people."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel

from pgnexus.errors import InvalidRequest, RunFailed, ServiceMisused, StepFailed
from pgnexus.flow.built.actions import Actions
from pgnexus.flow.built.builder import FlowBuilder
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.prompt import Prompt
from pgnexus.messages import LLMResult
from pgnexus.testing import run_inline


class Review(BaseModel):
    score: int


def reviewing() -> Flow:
    flow = Flow("review")

    @flow.step
    def files(input: str) -> list[str]:
        return input.split()

    @flow.llm(over=files, returns=Review, system="You are strict", complexity="simple")
    def review(path: str) -> Prompt:
        return Prompt(f"Review {path}", temperature=0.5)

    flow.wait("approval", depends_on=review, timeout=60, returns=bool)

    @flow.step(only_if={"approval": True})
    def release(review: list[Review], approval: bool) -> int:
        return sum(one.score for one in review)

    return flow


async def test_models_and_people_are_the_tests():
    asked: list[Prompt] = []

    def llm(prompt: Prompt) -> Review:
        asked.append(prompt)
        return Review(score=len(asked))

    run = await run_inline(reviewing(), "a.py b.py", llm=llm, signals={"approval": True})
    assert run.output == 3
    assert [prompt.prompt for prompt in asked] == ["Review a.py", "Review b.py"]
    assert (asked[0].system, asked[0].complexity, asked[0].temperature) == ("You are strict", "simple", 0.5)
    assert asked[0].response_format["json_schema"]["name"] == "review"


async def test_a_condition_that_is_not_met_skips():
    run = await run_inline(reviewing(), "a.py", llm={"review": '{"score": 1}'}, signals={"approval": False})
    assert run.output is None
    assert (run.steps["release"].status, run.steps["release"].skip_reason) == ("skipped", "condition_unmet")


async def test_what_the_model_says_becomes_the_output_as_in_the_engine():
    flow = Flow("kinds")
    flow.llm(slug="text")(lambda input: "?")
    flow.llm(slug="number", returns=int)(lambda input: "?")
    flow.llm(slug="kind", returns=Literal["a", "b"])(lambda input: "?")
    flow.llm(slug="all", returns=LLMResult)(lambda input: "?")
    answers = {
        "text": "Hi",
        "number": '```json\n{"value": 7}\n```',
        "kind": '"a"',
        "all": lambda prompt: prompt.prompt,
    }
    output = (await run_inline(flow, None, llm=answers)).output
    assert {**output, "all": output["all"].text} == {"text": "Hi", "number": 7, "kind": "a", "all": "?"}


async def test_an_answer_that_is_not_json_is_asked_for_again():
    flow = Flow("again")
    flow.llm(slug="number", returns=int)(lambda input: "?")
    said = ["seven", '{"other": 7}', '{"value": 7}']
    run = await run_inline(flow, None, llm=lambda prompt: said.pop(0))
    assert (run.output, run.steps["number"].attempts) == (7, 3)
    run = await run_inline(flow, None, llm={"number": "seven"}, check=False)
    assert run.steps["number"].error == "ValueError: the answer is not JSON: seven"


async def test_a_request_that_fails_for_good_fails_its_step():
    with pytest.raises(RunFailed, match="step review: StepFailed: no answer came: over budget"):
        await run_inline(reviewing(), "a", llm={"review": RuntimeError("over budget")})


async def test_nobody_answers_in_time():
    flow = Flow("late")
    flow.wait("approval", timeout=5, when_exhausted="skip")
    run = await run_inline(flow, None, signals={"approval": TimeoutError("in 5 s")})
    assert run.steps["approval"].error == "StepFailed: no answer came: in 5 s"
    assert run.steps["approval"].skip_reason == "handler_failed"


async def test_tasks_of_a_map_may_get_signals_of_their_own():
    flow = Flow("many")

    @flow.map
    def ask(one: int, ctx: Context) -> str | int | Later:
        return one if one == 1 else ctx.later(timeout=5)

    run = await run_inline(flow, [0, 1, 2], signals={("ask", 0): "first", "ask": "other"})
    assert run.steps["ask"].output == ["first", 1, "other"]


async def test_a_failed_run_raises_unless_it_is_asked_not_to():
    flow = Flow("failing")

    @flow.step
    def never(input: int) -> int:
        raise StepFailed("no")

    with pytest.raises(RunFailed, match="step never: StepFailed: no"):
        await run_inline(flow, 1)
    run = await run_inline(flow, 1, check=False)
    assert (run.status, run.steps["never"].attempts) == ("failed", 1)


async def test_faults_of_the_test_itself_are_not_swallowed():
    def llm(prompt: Prompt) -> str:
        raise AssertionError("wrong prompt")

    with pytest.raises(AssertionError, match="wrong prompt"):
        await run_inline(reviewing(), "a", llm=llm)
    with pytest.raises(ServiceMisused, match="step review asks a model; give llm="):
        await run_inline(reviewing(), "a")
    with pytest.raises(ServiceMisused, match="llm has no answer for it"):
        await run_inline(reviewing(), "a", llm={"other": "x"})
    with pytest.raises(ServiceMisused, match="step approval waits for a signal; give signals="):
        await run_inline(reviewing(), "a", llm={"review": Review(score=1)})
    with pytest.raises(InvalidRequest, match="step approval: payload"):
        await run_inline(reviewing(), "a", llm={"review": Review(score=1)}, signals={"approval": "perhaps"})
    flow = Flow("text")
    flow.llm(slug="text")(lambda input: "?")
    with pytest.raises(ServiceMisused, match="let llm answer a text, not 7"):
        await run_inline(flow, None, llm={"text": 7})


async def test_flows_built_at_run_time_run_inline_too():
    actions = Actions()

    @actions.add
    def fetch(url: str) -> str:
        return f"what is at {url}"

    flow = FlowBuilder(actions).build(
        {
            "name": "digest",
            "steps": [
                {"slug": "page", "use": "fetch", "with": {"url": "{input.url}"}},
                {"slug": "summary", "prompt": "Sum up: {page}"},
            ],
        }
    )
    run = await run_inline(flow, {"url": "x"}, llm=lambda prompt: prompt.prompt.upper())
    assert run.output == "SUM UP: WHAT IS AT X"


async def test_a_transactional_step_gets_the_tests_connection(db):
    flow = Flow("writing")

    @flow.step(transactional=True)
    async def write(input: int, ctx: Context) -> int:
        cursor = await ctx.connection.execute("select %s + 1", [input])
        return (await cursor.fetchone())[0]

    async with db.connection() as connection:
        assert (await run_inline(flow, 1, connection=connection)).output == 2
