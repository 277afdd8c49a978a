"""What the database is told of a flow."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from pgnexus.flow.built.actions import Actions
from pgnexus.flow.built.builder import FlowBuilder
from pgnexus.flow.define.graph import Flow

NONE: dict[str, Any] = {"defined": False}


class Decision(BaseModel):
    yes: bool


def flow() -> Flow:
    flow = Flow("review", max_attempts=4, base_delay=timedelta(minutes=1), timeout=90)

    @flow.step(only_if={"kind": "repo"}, max_attempts=1, start_delay=timedelta(seconds=2))
    def zebra(input: dict[str, Any]) -> list[int]:
        """Find the stripes.

        In any order.
        """
        return []

    @flow.step(slug="apes", unless={"kind": "zoo"}, when_unmet="fail", timeout=7, base_delay=0)
    def find_apes(input: dict[str, Any]) -> list[int]:
        return []

    flow.map(over=zebra, slug="each", when_exhausted="skip-cascade", pure=True)(abs)
    flow.wait("approval", depends_on=[zebra, "apes", "zebra"], timeout=60, returns=Decision)
    return flow


def test_the_shape_is_the_contracts() -> None:
    def step(slug: str, **given: Any) -> dict[str, Any]:
        return {
            "slug": slug,
            "stepType": "single",
            "dependencies": [],
            "whenUnmet": "skip",
            "whenExhausted": "fail",
            "requiredInputPattern": NONE,
            "forbiddenInputPattern": NONE,
            "options": {},
        } | given

    def pattern(value: Any) -> dict[str, Any]:
        return {"defined": True, "value": value}

    assert flow().shape() == {
        "steps": [
            step(
                "zebra",
                requiredInputPattern=pattern({"kind": "repo"}),
                options={"maxAttempts": 1, "startDelay": 2},
            ),
            step(
                "apes",
                forbiddenInputPattern=pattern({"kind": "zoo"}),
                whenUnmet="fail",
                options={"timeout": 7, "baseDelay": 0},
            ),
            step("each", stepType="map", dependencies=["zebra"], whenExhausted="skip-cascade"),
            step("approval", dependencies=["apes", "zebra"]),
        ],
        "options": {"maxAttempts": 4, "baseDelay": 60, "timeout": 90},
    }


def test_the_definition_shows_what_the_shape_does_not() -> None:
    definition = flow().definition()
    assert definition["name"] == "review"
    zebra, _, each, approval = definition["steps"]
    assert zebra == {
        "slug": "zebra",
        "kind": "single",
        "is_map": False,
        "depends_on": [],
        "pure": False,
        "transactional": False,
        "doc": "Find the stripes.",
    }
    assert (each["kind"], each["pure"], each["depends_on"]) == ("map", True, ["zebra"])
    assert (approval["kind"], approval["timeout"]) == ("wait", 60.0)
    assert approval["returns"]["properties"] == {"yes": {"title": "Yes", "type": "boolean"}}
    assert json.loads(json.dumps(definition)) == definition


def test_handlers_and_options_of_prompts_do_not_make_another_version() -> None:
    one, two = Flow("f"), Flow("f")
    one.llm(slug="a", complexity="simple", timeout=5)(lambda: "x")
    two.llm(slug="a", complexity="complex")(lambda: "y")
    assert one.shape() == two.shape()


def test_steps_of_built_flows_name_what_runs_them() -> None:
    actions = Actions()
    actions.add(name="size")(len)
    built = FlowBuilder(actions).build(
        {
            "name": "b",
            "steps": [
                {"slug": "one", "use": "size", "max_attempts": 2},
                {"slug": "two", "prompt": "Is {one} many?"},
                {"slug": "three", "wait": 5, "depends_on": ["two"]},
            ],
        }
    )
    shape = built.shape()
    assert [step["handler"] for step in shape["steps"]] == ["size", "prompt", "wait"]
    assert shape["options"] == {"maxAttempts": 3, "baseDelay": 5, "timeout": 60}
    assert shape["steps"][0]["options"] == {"maxAttempts": 2}
    assert all("handler" not in step for step in flow().shape()["steps"])
