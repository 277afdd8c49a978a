"""Flows as users write them: what the graph is read from, what is refused, how handlers are called."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from pgnexus.errors import (
    InvalidFlow,
    InvalidOutput,
    InvalidRequest,
    PgnexusError,
    ServiceMisused,
    StepFailed,
)
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.invoke import MAX_THREADS
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.prompt import Prompt
from pgnexus.messages import LLMResult, Message

if TYPE_CHECKING:
    from decimal import Decimal


class Repo(BaseModel):
    url: str


class Review(BaseModel):
    path: str
    ok: bool = True


class Decision(BaseModel):
    yes: bool


async def nothing() -> Any:
    return None


def context(**given: Any) -> Context:
    return Context(flow="review", step="x", **given)


def review_flow() -> Flow:
    flow = Flow("review", max_attempts=3, base_delay=5, timeout=60)

    @flow.step
    async def files(input: Repo) -> list[str]:
        """The files that are to be read."""
        return [f"{input.url}/a", f"{input.url}/b"]

    @flow.map(over=files)
    async def review(path: str, ctx: Context) -> Review:
        return Review(path=path, ok=ctx.task_index == 0)

    @flow.llm(depends_on=review, complexity="complex", task_type="architect", returns=str)
    def summary(review: list[Review]) -> Prompt:
        return Prompt(", ".join(one.path for one in review))

    approval = flow.wait("approval", depends_on=summary, timeout=timedelta(days=7), returns=Decision)

    @flow.step(depends_on=[approval, "summary"], timeout=timedelta(minutes=2))
    def publish(approval: Decision, summary: str) -> bool:
        return approval.yes and bool(summary)

    return flow


# What the graph is read from


def test_the_graph_is_read_from_names_and_from_depends_on() -> None:
    flow = review_flow()
    assert {slug: step.depends_on for slug, step in flow.steps.items()} == {
        "files": (),
        "review": ("files",),
        "summary": ("review",),
        "approval": ("summary",),
        "publish": ("approval", "summary"),
    }
    assert [(step.kind, step.is_map) for step in flow.steps.values()] == [
        ("single", False),
        ("map", True),
        ("llm", False),
        ("wait", False),
        ("single", False),
    ]
    assert all(step.handler_name is None for step in flow.steps.values())
    flow.check()


def test_a_step_is_still_the_function_that_it_was() -> None:
    flow = Flow("f")

    @flow.step
    def double(input: int) -> int:
        """Twice as much."""
        return 2 * input

    assert double(4) == 8
    assert (double.__name__, double.__doc__, double.doc) == ("double", "Twice as much.", "Twice as much.")


def test_a_step_may_wait_for_another_without_its_output() -> None:
    flow = Flow("f")
    first = flow.step(slug="first")(lambda: 1)

    @flow.step(depends_on=first)
    def second(ctx: Context | None) -> int:
        return 2

    assert second.depends_on == ("first",)
    flow.check()


def test_steps_may_be_named_before_they_are_there_and_are_put_in_order() -> None:
    flow = Flow("f")

    @flow.step(depends_on="later")
    def now(later: int) -> int:
        return later

    @flow.step
    def later(input: int) -> int:
        return input

    flow.check()
    assert list(flow.steps) == ["later", "now"]


def test_a_map_without_over_goes_over_the_input() -> None:
    flow = Flow("f")

    @flow.map
    async def one(x: int) -> int:
        return x

    assert (one.is_map, one.depends_on) == (True, ())
    assert flow.encode_input([1, 2]) == "[1, 2]"
    with pytest.raises(InvalidRequest, match="flow f, step one: input: the step one maps over it"):
        flow.encode_input({"a": 1})
    with pytest.raises(InvalidRequest, match=r"step one: input\[1\]: "):
        flow.encode_input([1, "x"])


def test_types_of_the_function_around_are_found() -> None:
    class Local(BaseModel):
        n: int

    flow = Flow("f")

    @flow.step
    def a(input: Local) -> Local:
        return input

    assert flow.decode_output({"a": {"n": 1}}) == Local(n=1)


# What is refused


@pytest.mark.parametrize(
    ("slug", "words"),
    [
        ("run", "cannot be called 'run'"),
        ("", "letters"),
        ("my flow", "such as 'my_flow'"),
        ("2nd", "such as '_2nd'"),
        ("naïve", "letters"),
        ("a\n", "letters"),
        ("a" * 129, "129 characters; a name has 128 at most"),
        (None, "must be a text"),
    ],
)
def test_bad_names_are_refused_with_advice(slug: Any, words: str) -> None:
    with pytest.raises(InvalidFlow, match=words):
        Flow(slug)
    with pytest.raises(InvalidFlow, match=words):
        Flow("f").wait(slug, timeout=1)


def test_the_longest_name_is_taken() -> None:
    assert Flow("a" * 128).name == "a" * 128


def with_cycle(flow: Flow) -> None:
    flow.step(slug="a", depends_on=["c"])(lambda: 1)
    flow.step(slug="b", depends_on=["a"])(lambda: 1)
    flow.step(slug="c", depends_on=["b"])(lambda: 1)


def with_itself(flow: Flow) -> None:
    flow.step(slug="a", depends_on=["a"])(lambda: 1)


def with_unknown(flow: Flow) -> None:
    flow.step(slug="files")(lambda: 1)
    flow.step(slug="b", depends_on=["flies"])(lambda: 1)


def with_duplicate(flow: Flow) -> None:
    flow.step(slug="a")(lambda: 1)
    flow.wait("a", timeout=1)


def with_a_step_of_another_flow(flow: Flow) -> None:
    other = Flow("other").step(slug="a")(lambda: 1)
    flow.step(slug="b", depends_on=other)(lambda: 1)


def with_no_step(flow: Flow) -> None:
    flow.step(slug="b", depends_on=[nothing])(lambda: 1)  # type: ignore[list-item]


def mapped_over_text(flow: Flow) -> None:
    @flow.step
    def a(input: int) -> str:
        return ""

    @flow.map(over=a)
    def b(x: str) -> str:
        return x


def mapped_over_maybe_none(flow: Flow) -> None:
    @flow.step
    def a(input: int) -> list[str] | None:
        return None

    @flow.map(over=a)
    def b(x: str) -> str:
        return x


def mapped_over_an_answers_text(flow: Flow) -> None:
    @flow.llm
    def a(input: int) -> Prompt:
        return Prompt("x")

    @flow.map(over=a)
    def b(x: str) -> str:
        return x


def mapped_over_two(flow: Flow) -> None:
    a, b = flow.step(slug="a")(list), flow.step(slug="b")(list)
    flow.map(over=[a, b])(nothing)  # type: ignore[call-overload]


def mapped_with_depends_on(flow: Flow) -> None:
    flow.step(slug="a")(list)
    flow.map(over="a", depends_on="a")(asyncio.sleep)  # type: ignore[call-overload]


def mapped_with_another_dependency(flow: Flow) -> None:
    flow.step(slug="a")(list)
    flow.step(slug="rules")(list)

    @flow.map(over="a")
    def b(x: str, rules: list[str]) -> str:
        return x


def mapped_over_what_was_meant(flow: Flow) -> None:
    flow.step(slug="files")(list)

    @flow.map
    def b(files: str) -> str:
        return files


def mapped_with_nothing_to_take(flow: Flow) -> None:
    @flow.map
    def b(ctx: Context) -> None:
        pass


def mapped_with_too_much(flow: Flow) -> None:
    @flow.map
    def b(x: int, y: int) -> None:
        pass


def unreachable(flow: Flow) -> None:
    flow.step(slug="files")(list)

    @flow.step
    def b(files: list[str], file: str) -> None:
        pass


def unreachable_in_a_root(flow: Flow) -> None:
    @flow.step
    def b(one: str, two: str) -> None:
        pass


def unannotated_context(flow: Flow) -> None:
    @flow.step
    def b(ctx) -> None:  # type: ignore[no-untyped-def]
        pass


def variadic(flow: Flow) -> None:
    @flow.step
    def b(*args: int) -> None:
        pass


def generator(flow: Flow) -> None:
    @flow.step
    def b(input: int) -> Iterator[int]:
        yield 1


def asynchronous_generator(flow: Flow) -> None:
    @flow.step
    async def b(input: int) -> AsyncIterator[int]:
        yield 1


def hidden_annotation(flow: Flow) -> None:
    @flow.step
    def b(input: Decimal) -> None:
        pass


class Opaque:
    pass


def opaque_parameter(flow: Flow) -> None:
    @flow.step
    def b(input: Opaque) -> None:
        pass


def opaque_output(flow: Flow) -> None:
    @flow.step
    def b(input: int) -> Opaque:
        return Opaque()


def skippable_by_condition(flow: Flow) -> None:
    flow.step(slug="a", only_if={"x": 1})(lambda: 1)

    @flow.step
    def b(a: int) -> None:
        pass


def skippable_when_exhausted(flow: Flow) -> None:
    flow.step(slug="a", when_exhausted="skip")(lambda: 1)

    @flow.step
    def b(a: int) -> None:
        pass


def pattern_of_nothing(flow: Flow) -> None:
    flow.step(slug="a")(lambda: 1)
    flow.step(slug="b", depends_on="a", only_if={"x": 1})(lambda: 1)


def lambda_without_name(flow: Flow) -> None:
    flow.step(lambda: 1)


def not_a_function(flow: Flow) -> None:
    flow.step("files")  # type: ignore[call-overload]


def a_step_already(flow: Flow) -> None:
    flow.step(slug="b")(Flow("other").step(slug="a")(nothing))


def bad_option(flow: Flow) -> None:
    flow.step(slug="a", tmeout=3)(lambda: 1)  # type: ignore[call-overload]


def bad_timeout(flow: Flow) -> None:
    flow.step(slug="a", timeout=0)(lambda: 1)


def bad_fraction(flow: Flow) -> None:
    flow.step(slug="a", base_delay=timedelta(seconds=0.5))(lambda: 1)


def bad_attempts(flow: Flow) -> None:
    flow.step(slug="a", max_attempts=True)(lambda: 1)


def bad_when(flow: Flow) -> None:
    flow.step(slug="a", when_unmet="ignore")(lambda: 1)  # type: ignore[call-overload]


def bad_pattern(flow: Flow) -> None:
    flow.step(slug="a", only_if=["x"])(lambda: 1)  # type: ignore[call-overload]


def pattern_that_is_not_json(flow: Flow) -> None:
    flow.step(slug="a", unless={"x": {1}})(lambda: 1)


def pure_and_transactional(flow: Flow) -> None:
    flow.step(slug="a", pure=True, transactional=True)(nothing)


def transactional_in_a_thread(flow: Flow) -> None:
    flow.step(slug="a", transactional=True)(lambda: 1)


def bad_wait(flow: Flow) -> None:
    flow.wait("a", timeout=0)


def bad_temperature(flow: Flow) -> None:
    flow.llm(slug="a", temperature=9)(lambda: "x")


def bad_complexity(flow: Flow) -> None:
    flow.llm(slug="a", complexity="hard")(lambda: "x")  # type: ignore[call-overload]


def bad_llm_option(flow: Flow) -> None:
    flow.llm(slug="a", pure=True)(lambda: "x")  # type: ignore[call-overload]


def llm_over_and_after(flow: Flow) -> None:
    flow.step(slug="a")(list)
    flow.llm(over="a", depends_on="a")(nothing)


def empty(flow: Flow) -> None:
    pass


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (with_cycle, "flow f: a cycle: (a → b → c → a|b → c → a → b|c → a → b → c); remove one"),
        (with_itself, "flow f, step a: it depends on itself"),
        (with_unknown, "flow f, step b: it depends on 'flies', .* did you mean 'files'"),
        (with_duplicate, "flow f, step a: there is such a step already; rename"),
        (with_a_step_of_another_flow, "flow f, step b: a is a step of another flow"),
        (with_no_step, "flow f, step b: <function nothing .* is no step; depend on what @flow.step returned"),
        (mapped_over_text, "flow f, step b: it maps over a, which returns str; let it return a list"),
        (mapped_over_maybe_none, r"step b: it maps over a, which returns list\[str\] \| None; return \[\]"),
        (mapped_over_an_answers_text, "flow f, step b: it maps over a, which returns str"),
        (mapped_over_two, "flow f, step nothing: a map goes over one step, not 2"),
        (mapped_with_depends_on, "flow f, step sleep: a map depends on one step, .* write over="),
        (mapped_with_another_dependency, "flow f, step b: a map has one dependency at most, .* 'rules'"),
        (mapped_over_what_was_meant, r"step b: the parameter 'files' .* write @flow.map\(over=files\)"),
        (mapped_with_nothing_to_take, "flow f, step b: a map's handler needs a parameter for the element"),
        (mapped_with_too_much, "flow f, step b: nothing fills the parameter 'y'"),
        (
            unreachable,
            "flow f, step b: nothing fills the parameter 'file': .* did you mean 'files'.*flow_input",
        ),
        (unreachable_in_a_root, "flow f, step b: nothing fills the parameter 'two'"),
        (unannotated_context, "flow f, step b: annotate the parameter 'ctx', as ctx: Context"),
        (variadic, r"flow f, step b: the handler takes \*args; name each parameter"),
        (generator, "flow f, step b: the handler is a generator; collect"),
        (asynchronous_generator, "flow f, step b: the handler is a generator; collect"),
        (hidden_annotation, "flow f, step b: an annotation cannot be read: name 'Decimal' .*TYPE_CHECKING"),
        (opaque_parameter, "flow f, step b: the parameter 'input': Opaque cannot be made from JSON"),
        (opaque_output, "flow f, step b: what it returns: Opaque cannot be made from JSON"),
        (skippable_by_condition, "flow f, step b: its dependency a can be skipped; give the parameter"),
        (skippable_when_exhausted, "flow f, step b: its dependency a can be skipped; give the parameter"),
        (pattern_of_nothing, r"flow f, step b: only_if is compared .*\(a\), and 'x' is none of them"),
        (lambda_without_name, "flow f: the handler has no name of its own; give slug="),
        (not_a_function, "flow f: 'files' is no function"),
        (a_step_already, r"flow f: a is a step already; give the function itself, a\.handler"),
        (bad_option, "flow f, step a: there is no option 'tmeout'; known are max_attempts"),
        (bad_timeout, "flow f, step a: timeout is 0 s; use 1 s to ten years"),
        (bad_fraction, "flow f, step a: base_delay is 0.5; use whole seconds"),
        (bad_attempts, "flow f, step a: max_attempts is True; use a whole number"),
        (bad_when, "flow f, step a: when_unmet is 'ignore'; use one of fail, skip, skip-cascade"),
        (bad_pattern, r"flow f, step a: only_if is \['x'\]; use an object"),
        (pattern_that_is_not_json, r"flow f, step a: unless\.x: a set is not JSON"),
        (pure_and_transactional, "flow f, step a: a step that writes to the database is not pure"),
        (transactional_in_a_thread, "flow f, step a: ctx.connection is asynchronous"),
        (bad_wait, "flow f, step a: a timeout of 0 s: use more than 0 s"),
        (bad_temperature, "flow f, step a: .*temperature: .*less than or equal to 2"),
        (bad_complexity, "flow f, step a: .*complexity: "),
        (bad_llm_option, "flow f, step a: there is no option 'pure'"),
        (llm_over_and_after, "flow f, step nothing: give over or depends_on, not both"),
        (empty, "flow f: it has no steps; add one with @flow.step"),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
def test_a_flow_that_cannot_work_is_refused(build: Any, words: str) -> None:
    flow = Flow("f")

    def whole() -> None:
        build(flow)
        flow.check()

    with pytest.raises(InvalidFlow, match=words):
        whole()


def test_a_default_or_none_takes_the_place_of_what_was_skipped() -> None:
    flow = Flow("f")
    flow.step(slug="a", only_if={"x": 1})(lambda: 1)
    flow.step(slug="cascading", unless={"x": 2}, when_unmet="skip-cascade")(lambda: 1)

    @flow.step
    def b(a: int = 7) -> int:
        return a

    @flow.step
    def c(a: int | None) -> str:
        return repr(a)

    @flow.step
    def d(cascading: int) -> int:
        return cascading

    @flow.map(over="a")
    def e(x: int) -> int:
        return x

    flow.check()
    assert asyncio.run(b.call({}, None, context())) == 7
    assert asyncio.run(c.call({}, None, context())) == "None"
    assert asyncio.run(c.call({"a": 0}, None, context())) == "0"


# How handlers are called


async def test_values_arrive_as_annotated_and_leave_as_json() -> None:
    steps = review_flow().steps
    assert await steps["files"].call({}, {"url": "x"}, context()) == ["x/a", "x/b"]
    answer = await steps["review"].call("x/a", None, context(task_index=1))
    assert answer == Review(path="x/a", ok=False)
    assert steps["review"].encode(answer) == '{"path": "x/a", "ok": false}'
    assert await steps["publish"].call({"approval": {"yes": True}, "summary": "s"}, None, context()) is True


@pytest.mark.parametrize(
    ("slug", "input", "flow_input", "words"),
    [
        ("files", {}, {"uri": "x"}, r"step files: parameter input\.url: Field required"),
        ("review", 3, None, "step review: parameter path: Input should be a valid string"),
        ("summary", {"review": [{}]}, None, r"step summary: parameter review\[0\]\.path: Field required"),
        ("publish", {"summary": "s"}, None, "step publish: parameter approval: that step was skipped"),
    ],
)
async def test_values_that_do_not_fit_fail_the_task_at_once(
    slug: str, input: Any, flow_input: Any, words: str
) -> None:
    with pytest.raises(StepFailed, match=words):
        await review_flow().steps[slug].call(input, flow_input, context())


@pytest.mark.parametrize("value", [0, False, "", None, [], {}], ids=repr)
async def test_falsy_inputs_and_outputs_are_what_they_are(value: Any) -> None:
    flow = Flow("f")
    given: list[Any] = []

    @flow.step
    def a(input: Any) -> Any:
        given.append(input)
        return input

    @flow.step
    async def b(a: Any) -> Any:
        given.append(a)
        return a

    assert await a.call({}, value, context()) == value
    assert await b.call({"a": value}, None, context()) == value
    assert all(one == value and type(one) is type(value) for one in given)
    assert len(given) == 2
    assert flow.decode_output({"b": value}) == value


async def test_a_plain_function_runs_in_a_thread_and_a_coroutine_in_the_loop() -> None:
    flow = Flow("f")
    seen: dict[str, Any] = {}

    class Callable:
        async def __call__(self, input: int) -> int:
            seen["callable"] = threading.current_thread()
            return input

    async def part(factor: int, input: int) -> int:
        return factor * input

    @flow.step
    def plain(input: int, /, ctx: Context, extra: int = 3) -> int:
        seen["plain"] = threading.current_thread()
        return input + extra

    flow.step(slug="called")(Callable())
    flow.step(slug="partial")(functools.partial(part, 2))
    flow.step(slug="lazy")(lambda: nothing())
    assert await plain.call({}, 1, context()) == 4
    assert await flow.steps["called"].call({}, 5, context()) == 5
    assert await flow.steps["partial"].call({}, 5, context()) == 10
    assert await flow.steps["lazy"].call({}, None, context()) is None
    assert seen["plain"] is not threading.current_thread()
    assert seen["callable"] is threading.current_thread()


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3)], ids=["stop", "exit"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
async def test_what_would_end_or_hang_the_worker_is_an_error_of_the_handler(
    error: BaseException, asynchronous: bool
) -> None:
    flow = Flow("f")

    def plain() -> None:
        raise error

    async def coroutine() -> None:
        raise error

    step = flow.step(slug="a")(coroutine if asynchronous else plain)
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await step.call({}, None, context())


async def test_plain_handlers_block_neither_each_other_nor_the_loop() -> None:
    flow = Flow("f")
    together = threading.Barrier(MAX_THREADS)

    @flow.step
    def a() -> int:
        return together.wait(60)

    answers = await asyncio.gather(*(a.call({}, None, context()) for _ in range(MAX_THREADS)))
    assert sorted(answers) == list(range(MAX_THREADS))


async def test_no_more_threads_run_at_once_than_are_allowed() -> None:
    flow = Flow("f")
    loop, release = asyncio.get_running_loop(), threading.Event()
    arrivals: asyncio.Queue[None] = asyncio.Queue()

    @flow.step
    def a() -> None:
        loop.call_soon_threadsafe(arrivals.put_nowait, None)
        release.wait(60)

    tasks = [asyncio.ensure_future(a.call({}, None, context())) for _ in range(MAX_THREADS + 5)]
    for _ in range(MAX_THREADS):
        await arrivals.get()
    assert arrivals.empty()
    release.set()
    await asyncio.gather(*tasks)
    assert arrivals.qsize() == 5


async def test_a_thread_that_hangs_can_be_given_up() -> None:
    flow = Flow("f")
    loop, started, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    @flow.step
    def a() -> str:
        if not started.is_set():
            loop.call_soon_threadsafe(started.set)
            release.wait(60)
        return "done"

    task = asyncio.ensure_future(a.call({}, None, context()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await a.call({}, None, context()) == "done"
    release.set()


def test_the_threads_of_a_loop_end_with_it() -> None:
    flow = Flow("f")
    seen: list[threading.Thread] = []
    step = flow.step(slug="a")(lambda: seen.append(threading.current_thread()))
    asyncio.run(step.call({}, None, context()))
    gc.collect()
    [thread] = seen
    thread.join(60)
    assert thread.daemon
    assert not thread.is_alive()


async def test_a_thread_sees_the_context_variables_of_the_task() -> None:
    flow = Flow("f")
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("mine")
    step = flow.step(slug="a")(lambda: variable.get())
    assert await step.call({}, None, context()) == "mine"


async def test_later_is_passed_on_and_is_no_output() -> None:
    flow = Flow("f")
    token = uuid.uuid4()

    @flow.step
    async def a(ctx: Context) -> str | Later:
        return ctx.later(timeout=timedelta(hours=1), details={"who": "me"}, token=token)

    answer = await a.call({}, None, context())
    assert answer == Later(timedelta(hours=1), "signal", {"who": "me"}, token)
    assert answer.seconds == 3600
    assert a.output.annotation is str
    with pytest.raises(InvalidOutput, match=r"step a: output\[0\]: a Later is not JSON"):
        a.encode([answer])


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), True, "1 h", timedelta(days=4000)])
def test_a_later_that_makes_no_sense_is_refused(timeout: Any) -> None:
    with pytest.raises(StepFailed, match="a timeout of"):
        Later(timeout)


async def test_a_wait_answers_later_and_takes_what_fits() -> None:
    approval = review_flow().steps["approval"]
    assert await approval.call({}, None, context()) == Later(7 * 86400.0, "signal")
    assert approval.accept({"yes": True}) == '{"yes": true}'
    with pytest.raises(InvalidRequest, match=r"step approval: payload\.yes: Field required"):
        approval.accept({"no": True})
    with pytest.raises(InvalidRequest, match="step approval: payload: nan is not JSON"):
        approval.accept(float("nan"))


# The context


async def test_the_context_says_where_it_is_and_reaches_the_run() -> None:
    stored: list[str] = []

    async def progress(text: str) -> bool:
        stored.append(text)
        return False

    async def flow_input() -> Any:
        return {"url": "x"}

    run_id = uuid.uuid4()
    ctx = Context(
        run_id=run_id, flow="f", step="s", task_index=3, attempt=2, flow_input=flow_input, progress=progress
    )
    assert (ctx.run_id, ctx.flow, ctx.step, ctx.task_index, ctx.attempt) == (run_id, "f", "s", 3, 2)
    assert await ctx.flow_input() == {"url": "x"}
    assert await ctx.flow_input(Repo) == Repo(url="x")
    with pytest.raises(StepFailed, match=r"step s: the run's input does not fit: input\.path"):
        await ctx.flow_input(Review)
    assert await ctx.progress({"done": 0.5}) is False
    assert stored == ['{"done": 0.5}']


def test_the_log_names_run_and_step(caplog: pytest.LogCaptureFixture) -> None:
    ctx = Context(step="s", attempt=2)
    ctx.log.warning("slow: %d", 3, extra={"mine": 1})
    [record] = caplog.records
    assert record.getMessage() == f"run {ctx.run_id} step s: slow: 3"
    assert (record.attempt, record.mine) == (2, 1)  # type: ignore[attr-defined]


async def test_a_context_of_no_run_says_so() -> None:
    assert await Context().progress(1) is True
    with pytest.raises(ServiceMisused, match="flow_input="):
        await Context().flow_input()
    with pytest.raises(ServiceMisused, match="only a transactional step has a connection"):
        _ = Context().connection


# LLM steps


def llm_flow(handler: Any, **settings: Any) -> Any:
    return Flow("f").llm(slug="ask", **settings)(handler)


async def test_a_prompt_becomes_a_request_that_somebody_else_answers() -> None:
    summary = review_flow().steps["summary"]
    answer = await summary.call({"review": [{"path": "a"}, {"path": "b"}]}, None, context())
    assert answer == Later(
        3600.0,
        "llm",
        {
            "request": {
                "complexity": "complex",
                "task_type": "architect",
                "messages": [{"role": "user", "content": "a, b"}],
                "timeout": 3600.0,
            },
            "as": "text",
        },
    )


async def test_a_prompt_has_the_last_word() -> None:
    step = llm_flow(
        lambda: Prompt(
            [Message(role="user", content="hi")],
            system="brief",
            temperature=0,
            timeout=timedelta(minutes=1),
            tools=[{"type": "function", "function": {"name": "z", "a": 1}}],
        ),
        system="long",
        temperature=1.0,
        max_tokens=9,
        timeout=5,
    )
    answer = await step.call({}, None, context())
    assert answer.seconds == 60
    assert answer.details["request"] == {
        "messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 9,
        "tools": '[{"type":"function","function":{"name":"z","a":1}}]',
        "timeout": 60.0,
    }


@pytest.mark.parametrize(
    ("returns", "kind", "field"),
    [
        (str, "text", None),
        (LLMResult, "result", None),
        (Decision, "json", None),
        (list[str], "json", "value"),
        (Any, "json", None),
    ],
)
async def test_what_an_llm_step_returns_decides_what_it_asks_for(
    returns: Any, kind: str, field: str | None
) -> None:
    step = llm_flow(lambda: "say something", returns=returns)
    answer = await step.call({}, None, context())
    assert answer.details["as"] == kind
    assert answer.details.get("field") == field
    asked = answer.details["request"].get("response_format", "")
    assert ('"json_schema"' in asked) is (returns in (Decision, list[str]))
    assert ('"type":"json_object"' in asked) is (returns is Any)
    assert step.output.annotation == returns


async def test_a_format_that_the_prompt_asks_for_is_not_unwrapped() -> None:
    step = llm_flow(lambda: Prompt("x", response_format={"type": "json_object"}), returns=list[str])
    answer = await step.call({}, None, context())
    assert "field" not in answer.details


async def test_an_llm_step_over_a_list_is_a_map() -> None:
    flow = Flow("f")
    flow.step(slug="files")(lambda: ["a"])

    @flow.llm(over="files", complexity="simple")
    def ask(path: str) -> str:
        return f"What is in {path}?"

    assert (ask.kind, ask.is_map, ask.depends_on) == ("llm", True, ("files",))
    answer = await ask.call("a.py", None, context())
    assert answer.details["request"]["messages"] == [{"role": "user", "content": "What is in a.py?"}]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Prompt("  "), "step ask: the prompt is no valid request: messages.*blank"),
        (Prompt([]), "step ask: the prompt is no valid request: messages"),
        (Prompt("x", metadata={"a": {1}}), r"step ask: prompt\.metadata\.a: a set is not JSON"),
        (Prompt("a\0b"), "step ask: prompt.*contains a NUL"),
        (Prompt("x", max_tokens=0), "step ask: .*max_tokens"),
        (Prompt("x", timeout=0), "step ask: a timeout of 0 s"),
        (None, "step ask: the handler of an LLM step returns a Prompt, a text, or a list .*NoneType"),
        (3, "not a int"),
    ],
)
async def test_a_prompt_that_cannot_be_asked_fails_at_once(answer: Any, words: str) -> None:
    with pytest.raises(StepFailed, match=words):
        await llm_flow(lambda: answer).call({}, None, context())


def test_a_prompt_from_a_step_that_asks_nobody_is_refused() -> None:
    step = Flow("f").step(slug="a")(lambda: 1)
    with pytest.raises(InvalidOutput, match=r"step a: it returned a Prompt, .* use @flow.llm"):
        step.encode(Prompt("x"))


# Inputs and outputs of runs


def test_inputs_are_checked_by_every_root_step() -> None:
    flow = review_flow()
    assert flow.encode_input(Repo(url="x")) == '{"url": "x"}'
    assert flow.encode_input({"url": "x"}) == '{"url": "x"}'
    for value, words in [
        ({"uri": "x"}, r"flow review, step files: input\.url: Field required"),
        (None, "flow review, step files: input: "),
        (object(), "flow review: input: a object is not JSON"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            flow.encode_input(value)
    with pytest.raises(InvalidRequest, match="flow review: input: 12 bytes are more"):
        flow.encode_input({"url": "x"}, max_bytes=3)


def test_outputs_have_the_types_that_were_annotated() -> None:
    flow = Flow("f")
    flow.step(slug="files")(lambda: ["a"])

    @flow.map(over="files")
    def review(path: str) -> Review:
        return Review(path=path)

    assert flow.decode_output({"review": [{"path": "a"}]}) == [Review(path="a")]
    assert flow.decode_output(None) is None
    flow.step(slug="count", depends_on="files")(lambda: 1)
    assert flow.decode_output({"review": [{"path": "a"}], "count": 0}) == {
        "review": [Review(path="a")],
        "count": 0,
    }
    assert flow.decode_output({"count": 0}) == {"count": 0}
    with pytest.raises(InvalidOutput, match=r"flow f: output of review\[0\]\.path: Field required"):
        flow.decode_output({"review": [{}]})


def test_every_error_is_of_our_tree() -> None:
    assert issubclass(InvalidFlow, PgnexusError)
    assert issubclass(InvalidOutput, StepFailed)


def test_a_misspelt_dependency_is_no_root() -> None:
    flow = Flow("typo")

    @flow.step
    def summary(input: str) -> str:
        return input

    with pytest.raises(InvalidFlow, match=r"publish.*'sumary'.*did you mean the step 'summary'"):

        @flow.step
        def publish(sumary: str) -> str:
            return sumary
