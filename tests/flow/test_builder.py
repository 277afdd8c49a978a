"""Flows composed at run time from JSON: built, refused with all faults at once, and restored."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pgnexus.errors import InvalidFlow, StepFailed
from pgnexus.flow.built.actions import Actions
from pgnexus.flow.built.builder import BuiltFlow, FlowBuilder
from pgnexus.flow.built.template import fill, text_of
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.later import Later


class Page(BaseModel):
    url: str
    words: int = 0


actions = Actions()


@actions.add
async def crawl(site: str, depth: int = 1) -> list[str]:
    """The pages of a site."""
    return [f"{site}/{n}" for n in range(depth)]


@actions.add
def fetch(url: str, ctx: Context) -> Page:
    """Read one page."""
    return Page(url=url, words=ctx.task_index)


@actions.add(pure=True)
def count(pages: list[Page], unit: str = "words") -> str:
    return f"{sum(page.words for page in pages)} {unit}"


@actions.add(name="double", transactional=True)
async def twice(number: int, /) -> int:
    return 2 * number


@actions.add
def join(left: str, right: str | None) -> str:
    return f"{left}+{right}"


builder = FlowBuilder(actions)

DIGEST: dict[str, Any] = {
    "name": "digest",
    "steps": [
        {"slug": "pages", "use": "crawl", "with": {"site": "{input.site}", "depth": 3}, "timeout": 30},
        {"slug": "texts", "use": "fetch", "over": "pages", "max_attempts": 2},
        {
            "slug": "summary",
            "prompt": 'For {input.reader}: sum up {texts} as {"a": {"b": 1}}, not as {{texts}}',
            "system": "You read {pages.0}",
            "complexity": "simple",
            "max_tokens": 100,
        },
        {"slug": "approval", "wait": 3600, "depends_on": ["summary"]},
        {"slug": "size", "use": "count", "depends_on": ["texts", "approval"], "with": {"pages": "{texts}"}},
    ],
}


def context(**given: Any) -> Context:
    async def flow_input() -> Any:
        return {"site": "x", "reader": "Ada"}

    return Context(flow="digest", flow_input=flow_input, **given)


def step(**given: Any) -> dict[str, Any]:
    return {"slug": "a", **given}


def flow(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "f", "steps": list(steps)}


def test_a_description_becomes_a_flow() -> None:
    built = builder.build(DIGEST)
    assert isinstance(built, BuiltFlow)
    assert {slug: step.depends_on for slug, step in built.steps.items()} == {
        "pages": (),
        "texts": ("pages",),
        "summary": ("pages", "texts"),
        "approval": ("summary",),
        "size": ("texts", "approval"),
    }
    assert [(step.kind, step.is_map, step.handler_name) for step in built.steps.values()] == [
        ("single", False, "crawl"),
        ("map", True, "fetch"),
        ("llm", False, "prompt"),
        ("wait", False, "wait"),
        ("single", False, "count"),
    ]
    assert built.steps["size"].pure
    assert builder.build(json.dumps(DIGEST)).shape() == built.shape()
    assert {step.handler_name for step in built.steps.values()} <= set(actions.handlers)


async def test_its_steps_do_what_it_says() -> None:
    steps = builder.build(DIGEST).steps
    pages = await steps["pages"].call({}, {"site": "x"}, context())
    assert pages == ["x/0", "x/1", "x/2"]
    text = await steps["texts"].call("x/1", None, context(task_index=1))
    assert steps["texts"].encode(text) == '{"url": "x/1", "words": 1}'
    outputs = {"pages": pages, "texts": [{"url": "x/1", "words": 4}]}
    prompt = await steps["summary"].call(outputs, None, context())
    assert prompt.details["request"]["messages"] == [
        {"role": "system", "content": "You read x/0"},
        {
            "role": "user",
            "content": 'For Ada: sum up [{"url": "x/1", "words": 4}] as {"a": {"b": 1}}, not as {texts}',
        },
    ]
    assert (prompt.details["as"], prompt.details["request"]["max_tokens"]) == ("text", 100)
    assert await steps["approval"].call({}, None, context()) == Later(3600.0)
    assert await steps["size"].call({**outputs, "approval": True}, None, context()) == "4 words"


async def test_values_that_do_not_fit_fail_the_task_at_once() -> None:
    steps = builder.build(DIGEST).steps
    with pytest.raises(StepFailed, match=r"step pages: parameter site: Input should be a valid string"):
        await steps["pages"].call({}, {"site": 3}, context())
    with pytest.raises(StepFailed, match=r"step size: parameter pages\[0\]\.url: Field required"):
        await steps["size"].call({"texts": [{}], "approval": 1}, None, context())
    built = builder.build(flow(step(prompt="{input}")))
    with pytest.raises(StepFailed, match=r"step a: the prompt is no valid request: .*blank"):
        await built.steps["a"].call({}, None, context())


@pytest.mark.parametrize(
    ("steps", "slug", "input", "answer"),
    [
        ([step(use="double")], "a", {}, 14),  # the run's input
        ([step(use="double", **{"with": {"number": 3}})], "a", {}, 6),
        ([step(use="double"), step(use="double", slug="b", depends_on=["a"])], "b", {"a": 5}, 10),
        ([step(use="double", slug="number"), step(use="double")], "a", {"number": 4}, 8),  # by its name
        (
            [step(use="crawl"), step(slug="b", use="join", over="a", **{"with": {"right": "{input}"}})],
            "b",
            "x",
            "x+7",
        ),
        (
            [
                step(use="double", when_exhausted="skip"),
                step(slug="b", use="join", **{"with": {"left": "l", "right": "{a}"}}),
            ],
            "b",
            {},
            "l+None",
        ),
    ],
    ids=range(6),
)
async def test_how_parameters_are_filled(
    steps: list[dict[str, Any]], slug: str, input: Any, answer: Any
) -> None:
    built = builder.build(flow(*steps))

    async def flow_input() -> Any:
        return "7"

    assert await built.steps[slug].call(input, 7, Context(flow_input=flow_input)) == answer


async def test_a_prompt_may_ask_for_json_of_a_schema() -> None:
    schema = {"type": "array", "items": {"type": "string"}}
    built = builder.build(
        flow(step(prompt="Name three", returns=schema), step(slug="b", prompt="Of {element}", over="a"))
    )
    answer = await built.steps["a"].call({}, None, context())
    assert (answer.details["as"], answer.details["field"]) == ("json", "value")
    asked = json.loads(answer.details["request"]["response_format"])["json_schema"]["schema"]
    assert asked["properties"] == {"value": schema}
    mapped = await built.steps["b"].call("x", None, context())
    assert mapped.details["request"]["messages"] == [{"role": "user", "content": "Of x"}]


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object"),
        ({"a": {1}}, r"description\.a: a set is not JSON"),
        ({}, "name: the name of a flow must be a text, not None\n- steps: must be a list"),
        ({"name": "f", "steps": []}, "steps: must be a list with one step at least"),
        ({**flow(step(prompt="x")), "Steps": 1}, "Steps: there is no such field; a flow has name and steps"),
        ({**flow(step(prompt="x")), "name": "my flow"}, "name: .* such as 'my_flow'"),
        (flow(step()), r"steps\[0\]: give exactly one of use, prompt and wait, not none"),
        (flow(step(prompt="x", wait=1)), r"steps\[0\]: give exactly one .* not prompt and wait"),
        (flow({"prompt": "x"}), r"steps\[0\]\.slug: field required"),
        (flow(3), r"steps\[0\]: "),  # type: ignore[arg-type]
        (flow(step(prompt="x", slug="a b")), r"steps\[0\]\.slug: a name has letters"),
        (flow(step(prompt="x", slug="run")), r"steps\[0\]\.slug: a step cannot be called 'run'"),
        (flow(step(prompt="x", slug="input")), r"steps\[0\]\.slug: \{input\} means something else"),
        (flow(step(prompt="x"), step(prompt="y")), r"steps\[1\]\.slug: 'a' is there more than once"),
        (
            flow(step(prompt="x", tmeout=1)),
            r"steps\[0\]\.tmeout: there is no such field; a step has slug, use",
        ),
        (flow(step(prompt="x", timeout="1")), r"steps\[0\]\.timeout: input should be a valid integer"),
        (flow(step(use="fetsch")), r"steps\[0\]\.use: there is no action 'fetsch'; did you mean 'fetch'"),
        (
            flow(step(use="crawl", **{"with": {"sight": 1}})),
            r"with\.sight: .* no such parameter; it has site",
        ),
        (flow(step(use="double", **{"with": {"number": "x"}})), r"with\.number: the value: Input should be"),
        (flow(step(use="join")), r"with: nothing fills the parameter 'left' of join; give it a constant"),
        (flow(step(prompt="x", **{"with": {"a": 1}})), r"steps\[0\]\.with: only a step with use has this"),
        (flow(step(use="crawl", system="x")), r"steps\[0\]\.system: only a step with a prompt has this"),
        (flow(step(wait=1, timeout=2)), r"steps\[0\]\.timeout: the time to wait is in wait"),
        (flow(step(prompt="x"), step(slug="b", wait=1, over="a")), r"steps\[1\]\.over: a wait goes over"),
        (flow(step(wait=0)), r"steps\[0\]\.wait: input should be greater than 0"),
        (
            flow(step(prompt="{b}")),
            r"steps\[0\]\.prompt: there is no step 'b'; for the text itself double its braces",
        ),
        (flow(step(prompt="{a.x}")), r"steps\[0\]\.prompt: the step depends on itself"),
        (flow(step(prompt="x", depends_on=["a"])), r"steps\[0\]\.depends_on: the step depends on itself"),
        (flow(step(prompt="{element}")), r"prompt: \{element\} is there only in a step with over"),
        (
            flow(step(use="crawl"), step(slug="b", prompt="{a}", over="a")),
            r"steps\[1\]\.prompt: .* sees \{element\} and \{input\} only, not \{a\}",
        ),
        (
            flow(step(use="crawl"), step(slug="b", prompt="x", over="a", depends_on=["a", "c"])),
            r"steps\[1\]\.depends_on: a step with over depends on 'a' alone",
        ),
        (flow(step(prompt="x"), step(slug="b", prompt="y", over="a")), r"steps\[1\]: it maps over a, .* str"),
        (
            flow(step(prompt="x", returns={"type": "object"}), step(slug="b", prompt="y", over="a")),
            r"steps\[1\]: it maps over a, which returns dict",
        ),
        (flow(step(prompt="{b}"), step(slug="b", prompt="{a}")), "steps: a cycle: (a → b → a|b → a → b)"),
        (
            flow(step(use="crawl", when_exhausted="skip"), step(slug="b", use="double", depends_on=["a"])),
            r"steps\[1\]: its dependency a can be skipped",
        ),
        (
            flow(step(prompt="x"), step(slug="b", prompt="{a}", only_if={"c": 1})),
            r"steps\[1\]: only_if is compared",
        ),
        (flow(step(prompt=" ")), r"steps\[0\]\.prompt: the prompt is no valid request"),
    ],
    ids=range(38),
)
def test_what_is_wrong_is_said_with_its_place(description: Any, words: str) -> None:
    with pytest.raises(InvalidFlow, match=words):
        builder.build(description)


def test_faults_stay_short() -> None:
    with pytest.raises(InvalidFlow) as raised:
        builder.build(flow(*(step(prompt="{" + "x" * 9000 + "}", slug=f"a{n}") for n in range(20))))
    assert len(str(raised.value)) < 15_000


def test_all_faults_are_said_at_once() -> None:
    description = {
        "name": "2 bad",
        "steps": [
            step(use="nothing"),
            step(slug="b", prompt="{c}", temperature=7),
            step(slug="c", use="crawl", over="d", **{"with": {"depth": "deep"}}),
            step(slug="e", wait=1, depends_on=["f"]),
            step(slug="g", prompt="x", returns="text"),
            step(slug="h", prompt="x", over="g"),
        ],
    }
    with pytest.raises(InvalidFlow) as raised:
        builder.build(description)
    first, *lines = str(raised.value).splitlines()
    assert first == "the flow's description has 7 faults:"
    assert [line.split(": ")[0] for line in lines] == [
        "- name",
        "- steps[1].temperature",
        "- steps[0].use",
        "- steps[2].with.depth",
        "- steps[2].over",
        "- steps[3].depends_on",
        "- steps[5]",
    ]


@pytest.mark.parametrize(
    ("limits", "description", "words"),
    [
        (
            {"max_steps": 1},
            flow(step(prompt="x"), step(slug="b", prompt="x")),
            "steps: 2 steps; 1 are allowed",
        ),
        (
            {"max_depth": 1},
            flow(step(prompt="x"), step(slug="b", prompt="{a}")),
            "steps: 2 steps follow each",
        ),
        (
            {"max_prompt_chars": 4},
            flow(step(prompt="xx", system="yyy")),
            r"steps\[0\]\.prompt: longer than 4",
        ),
        ({"max_bytes": 40}, flow(step(prompt="x" * 40)), "description is longer than 40 bytes"),
        ({"max_attempts": 3}, flow(step(prompt="x", max_attempts=4)), r"max_attempts: 3 are allowed at most"),
        ({"max_seconds": 9}, flow(step(wait=9.5)), r"steps\[0\]\.wait: 9 s are allowed at most"),
        ({"max_seconds": 9}, flow(step(prompt="x", timeout=10)), r"steps\[0\]\.timeout: 9 s are allowed"),
    ],
    ids=range(7),
)
def test_limits(limits: dict[str, int], description: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidFlow, match=words):
        FlowBuilder(actions, **limits).build(description)
    builder.build(description)


def test_a_flow_is_restored_from_its_definition_whatever_the_limits_are_now() -> None:
    built = builder.build(DIGEST)
    definition = json.loads(json.dumps(built.definition(), sort_keys=True))
    restored = FlowBuilder(actions, max_steps=1).load(definition)
    assert restored.shape() == built.shape()
    assert restored.definition() == built.definition()
    assert restored.name == "digest"
    with pytest.raises(InvalidFlow, match=r"steps\[0\]\.use: there is no action 'crawl'; there are none"):
        FlowBuilder(Actions()).load(definition)
    for wrong in ({}, None, {"description": 3}):
        with pytest.raises(InvalidFlow, match="no definition of a flow built at run time"):
            builder.load(wrong)  # type: ignore[arg-type]


# What a model is given


def test_the_schema_takes_what_the_builder_takes() -> None:
    schema = builder.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(DIGEST, schema)
    assert (
        "- crawl(site: str, depth: int (optional)) gives list[str]: The pages of a site."
        in (schema["properties"]["steps"]["items"]["properties"]["use"]["description"])
    )


@pytest.mark.parametrize(
    "description",
    [
        flow(),
        flow(step()),
        flow(step(use="crawl", prompt="x")),
        flow(step(use="nothing")),
        flow(step(prompt="x", wrong=1)),
        flow(step(prompt="x", complexity="hard")),
        flow(step(prompt="x", slug="a b")),
        flow(step(prompt="x" * 20_001)),
        flow(step(prompt="x", max_attempts=11)),
        flow(step(prompt="x", timeout=None)),
        flow(*(step(prompt="x", slug=f"a{n}") for n in range(51))),
        {"name": "f"},
        {**flow(step(prompt="x")), "more": 1},
    ],
    ids=range(13),
)
def test_the_schema_refuses_what_the_builder_refuses(description: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(builder.json_schema()).is_valid(description)


def test_without_actions_there_are_prompts_and_waits() -> None:
    schema = FlowBuilder(Actions()).json_schema()
    jsonschema.validate(flow(step(prompt="x"), step(slug="b", wait=1)), schema)
    assert "use" not in schema["properties"]["steps"]["items"]["properties"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.just("{a}") | st.just("crawl"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "steps", "slug", "use", "prompt", "wait", "with", "over", "depends_on", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(deadline=None)
@given(json_values)
def test_whatever_a_model_writes_is_a_flow_or_a_refusal(value: Any) -> None:
    for description in (value, {"name": "f", "steps": [value]}, {"name": "f", "steps": value}):
        with contextlib.suppress(InvalidFlow):
            assert builder.build(description).steps


# Actions and templates


def test_actions_are_functions_with_names_of_their_own() -> None:
    mine = Actions()

    def refused(words: str, handler: Any, **settings: Any) -> None:
        with pytest.raises(InvalidFlow, match=words):
            mine.add(**settings)(handler)

    assert mine.add(fetch) is fetch
    refused("action fetch: there is such an action already", fetch)
    refused("action prompt: that word stands for a kind of step", fetch, name="prompt")
    refused("letters", lambda: 1)
    refused("action a: an action that writes", twice, name="a", pure=True, transactional=True)
    refused("action a: ctx.connection is asynchronous", fetch, name="a", transactional=True)
    refused(r"action a: the handler takes \*", print, name="a")
    assert mine.handlers == ["fetch", "prompt", "wait"]


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{a}", [0, {"b": None}]),
        ("{a.1}", {"b": None}),
        ("{a.1.b}", None),
        ("{a.7}", None),
        ("{gone}", None),
        ("{t.x}", None),
        ("{{a}}", "{a}"),
        ("[{t}]", "[it's {a}]"),
        ("{a.1.b}.", "."),
        ("{ a } {} {1} {a-b}", "{ a } {} {1} {a-b}"),
        ({"k": ["{f}", 1, None]}, {"k": [False, 1, None]}),
        ("n{f}", "nfalse"),
    ],
)
def test_placeholders(template: Any, filled: Any) -> None:
    values = {"a": [0, {"b": None}], "t": "it's {a}", "f": False}
    assert fill(template, values) == filled


@settings(deadline=None)
@given(st.text(st.sampled_from("{}ab. "), max_size=12))
def test_texts_without_values_never_fail(text: str) -> None:
    text_of(text, {})
