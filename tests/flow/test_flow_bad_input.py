"""What is wrong is said, ends in a state in which it can be mended, and spoils nothing else.

What is wrong with a flow itself is in test_graph and test_builder, with values in test_values, with schedules in
test_schedule, and what a handler raises in test_worker.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgnexus.db.database import Database
from pgnexus.errors import InvalidRequest, NotWaiting, RunFailed, UnknownRun
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.later import Later
from tests.flow.running import started, tasks
from tests.system import archived, messages, sql, until

REASON = "no message of a task: needs run_id (a UUID), step_slug and task_index"
MAX_BYTES = 2048


def echo(name: str = "echo", **options: Any) -> Flow:
    flow = Flow(name, base_delay=0)

    @flow.step(**options)
    async def say(input: Any) -> Any:
        return input

    return flow


async def fails(app: Any, flow: Flow | str, input: Any = None) -> tuple[Any, str]:
    """The handle of a run that fails, and what it says."""
    handle = await app.executor.start(flow, input)
    with pytest.raises(RunFailed) as raised:
        await handle.result(timeout=30)
    return handle, str(raised.value)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None, asyncio.Lock())


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class Liar(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


ERRORS = [
    (Unpicklable(), "Unpicklable: "),
    (Mute(), "Mute: (its message cannot be had)"),
    (Liar(), "Liar: (its message cannot be had)"),
    (GeneratorExit("gone"), "GeneratorExit: gone"),
    (SystemExit("enough"), "RuntimeError: step step: the handler raised SystemExit('enough')"),
    (BaseExceptionGroup("both", [ValueError("a"), SystemExit(1)]), "BaseExceptionGroup: both (2 sub-exceptions)"),
    (asyncio.CancelledError("not ours"), "CancelledError: not ours"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["async", "plain", "pure", "transactional", "map"])
async def test_whatever_is_raised_is_told_and_the_run_can_be_taken_up_again(
    database_url: str, db: Database, kind: str
) -> None:
    mended: list[bool] = []
    flow = Flow("raising", base_delay=0, max_attempts=2)

    def act(number: int) -> int:
        if not mended:
            raise ERRORS[number][0]
        return number

    if kind == "plain":

        @flow.step
        def step(input: int) -> int:
            return act(input)
    elif kind == "map":

        @flow.map(slug="step")
        async def each(number: int) -> int:
            return act(number)
    elif kind == "pure":

        @flow.step
        async def before(input: int) -> int:
            return input

        @flow.step(pure=True, slug="step")
        async def behind(before: int) -> int:
            return act(before)
    else:

        @flow.step(transactional=kind == "transactional", slug="step")
        async def alone(input: int) -> int:
            return act(input)

    async with started(database_url, flow) as app:
        for number, (_, said_of_it) in enumerate(ERRORS):
            text = said_of_it
            mended.clear()
            handle, said = await fails(app, flow, [number] if kind == "map" else number)
            assert str(handle.run_id) in said
            assert "step" in said
            status = await handle.status()
            assert (status.status, status.step("step").status) == ("failed", "failed")
            [task] = [task for task in await tasks(db, handle.run_id) if task.step_slug == "step"]
            assert (task.status, task.attempts) == ("failed", 2)
            if kind == "plain" and text.startswith("GeneratorExit"):
                text = "RuntimeError: step step: the handler raised GeneratorExit"
            assert task.error.startswith(text)
            mended.append(True)
            assert await handle.retry()
            assert await handle.result(timeout=30) == ([number] if kind == "map" else number)


OUTPUTS = [
    ({1, 2}, "a set is not JSON"),
    (object(), "a object is not JSON"),
    (float("nan"), "not JSON"),
    ("a\0b", "contains a NUL character"),
    ({"a": ["\ud800"]}, "output.a[0]: contains a lone surrogate"),
    ({"\0": 1}, "contains a NUL character"),
    ({(1, 2): 1}, "not"),
    ("x" * (MAX_BYTES + 1), "more than max_message_bytes"),
    (10**400, "an integer of more than 300 digits"),
]


@pytest.mark.parametrize("kind", ["step", "plain", "pure", "transactional", "map"])
async def test_an_output_that_cannot_be_stored_names_its_step_and_can_be_mended(
    database_url: str, db: Database, kind: str
) -> None:
    mended: list[bool] = []
    flow = Flow("odd", base_delay=0)
    await sql(db, "create table public.traces (number int)")

    if kind == "plain":

        @flow.step(slug="give")
        def plain(input: int) -> Any:
            return "fine" if mended else OUTPUTS[input][0]
    elif kind == "map":

        @flow.map(slug="give")
        async def each(number: int) -> Any:
            return "fine" if mended else OUTPUTS[number][0]
    elif kind == "pure":

        @flow.step
        async def before(input: int) -> int:
            return input

        @flow.step(pure=True, slug="give")
        async def behind(before: int) -> Any:
            return "fine" if mended else OUTPUTS[before][0]
    else:

        @flow.step(slug="give", transactional=kind == "transactional")
        async def alone(input: int, ctx: Context) -> Any:
            if kind == "transactional":
                await ctx.connection.execute("insert into public.traces values (%s)", (input,))
            return "fine" if mended else OUTPUTS[input][0]

    async with started(database_url, flow, max_message_bytes=MAX_BYTES) as app:
        for number, (_, text) in enumerate(OUTPUTS):
            mended.clear()
            handle, said = await fails(app, flow, [number] if kind == "map" else number)
            assert "give" in said
            assert text in said
            [task] = [task for task in await tasks(db, handle.run_id) if task.step_slug == "give"]
            assert (task.status, task.attempts) == ("failed", 1)  # the same would come of it again
            assert not await sql(db, "select 1 from public.traces")
            mended.append(True)
            assert await handle.retry()
            assert await handle.result(timeout=30) == (["fine"] if kind == "map" else "fine")
            await sql(db, "delete from public.traces")


async def test_bad_outputs_in_one_batch_with_good_ones_spoil_none(database_url: str, db: Database) -> None:
    flow = Flow("mixed", base_delay=0)

    @flow.map(when_exhausted="skip")
    async def each(number: int) -> Any:
        return number

    @flow.step
    async def odd(input: list[int]) -> Any:
        return {"bad": {1}} if len(input) % 2 else len(input)

    async with started(database_url, flow) as app:
        handles = [await app.executor.start(flow, list(range(count))) for count in range(40)]
        ends = await asyncio.gather(
            *(handle.result(timeout=30) for handle in handles), return_exceptions=True
        )
    assert [isinstance(end, RunFailed) for end in ends] == [bool(count % 2) for count in range(40)]
    assert [end["each"] for end in ends[::2]] == [list(range(count)) for count in range(0, 40, 2)]  # type: ignore[index]


async def test_an_input_that_does_not_fit_fails_its_run_when_nobody_checked_it(
    database_url: str, db: Database
) -> None:
    flow = Flow("strict", base_delay=0)

    @flow.step
    async def count(input: dict[str, int]) -> int:
        return sum(input.values())

    async with started(database_url, flow) as app:
        for given, text in (('{"a": "x"}', "input.a: "), ("[]", "input: "), ("null", "input: ")):
            [row] = await sql(db, "select run_id from pgflow.start_flow('strict', %s::jsonb)", given)
            with pytest.raises(RunFailed, match="count") as raised:
                await app.executor.result(row.run_id, timeout=30)
            assert text in str(raised.value)
            [task] = await tasks(db, row.run_id)
            assert task.attempts == 1


async def test_an_unknown_flow_is_said_by_the_database_too(db: Database) -> None:
    for call in (
        "pgflow.start_flow('nothing', '1')",
        "pgflow.start_flow_with_states('nothing', '1')",
        "pgflow.start_flows('nothing', array['1'::jsonb])",
        "pgflow.pause_flow('nothing')",
        "pgflow.resume_flow('nothing')",
    ):
        with pytest.raises(psycopg.Error, match='there is no flow "nothing"') as raised:
            await sql(db, f"select {call}")
        assert raised.value.sqlstate == "PN010"
    assert not await sql(db, "select 1 from pgflow.runs")


async def test_a_shape_with_a_cycle_is_refused_by_the_database_too(db: Database) -> None:
    steps = [
        {"slug": slug, "stepType": "single", "dependencies": [dep]} for slug, dep in (("a", "b"), ("b", "a"))
    ]
    shape = json.dumps({"steps": steps})
    for call in (
        "pgflow.compile_flow('circle', %s::jsonb)",
        "pgflow.register_built_flow(%s::jsonb, '{}')",
        "pgflow.ensure_flow_compiled('circle', %s::jsonb)",
    ):
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="b"):
            await sql(db, f"select {call}", shape)
    await sql(db, "select pgflow.create_flow('circle')")
    with pytest.raises(psycopg.errors.CheckViolation):
        await sql(db, "select pgflow.add_step('circle', 'a', array['a'])")
    assert not await sql(db, "select 1 from pgflow.steps where flow_slug <> 'llm_request_workflow'")


def waiting() -> Flow:
    flow = Flow("patient", base_delay=0)
    flow.wait("answer", timeout=60, returns=dict[str, int])

    @flow.step
    async def total(answer: dict[str, int]) -> int:
        return sum(answer.values())

    return flow


async def _waits(db: Database, run_id: Any) -> Any:
    return await sql(
        db, "select 1 from pgflow.step_tasks where run_id = %s and deferred_until is not null", run_id
    )


async def refused(db: Database, *given: Any) -> str:
    """What the database says of a signal that nobody waits for."""
    with pytest.raises(psycopg.Error) as raised:
        await sql(db, "select pgflow.signal(%s, %s, %s::jsonb, %s)", *given)
    assert raised.value.sqlstate == "PN011"
    return str(raised.value.diag.message_primary)


async def test_signals_that_nobody_waits_for(database_url: str, db: Database) -> None:
    flow = waiting()
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow)
        await until(lambda: _waits(db, handle.run_id))
        with pytest.raises(NotWaiting, match=rf"{handle.run_id}: step total .* is created"):
            await handle.signal("total", 1)
        with pytest.raises(NotWaiting, match="no such step"):
            await handle.signal("anwser", {"a": 1})
        with pytest.raises(NotWaiting, match="task 1"):
            await handle.signal("answer", {"a": 1}, task_index=1)
        with pytest.raises(UnknownRun):
            await app.executor.signal(uuid4(), "answer", {"a": 1})
        for payload, text in (
            ({"a": "x"}, "a"),
            ({"a\0": 1}, "NUL"),
            ([object()], "not JSON"),
            (None, "object"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                await handle.signal("answer", payload)
        assert "is created" in await refused(db, handle.run_id, "total", "{}", 0)
        assert "no such step" in await refused(db, handle.run_id, "anwser", "{}", 0)
        assert "task -1" in await refused(db, handle.run_id, "answer", "{}", -1)
        assert "no such run" in await refused(db, uuid4(), "answer", "{}", 0)
        assert (await handle.status()).status == "started"  # none of it did any harm

        both = await asyncio.gather(
            *(handle.signal("answer", {"a": n}) for n in range(8)), return_exceptions=True
        )
        assert Counter(type(one) for one in both) == {type(None): 1, NotWaiting: 7}
        winner = both.index(None)
        assert await handle.result(timeout=30) == winner
        with pytest.raises(NotWaiting, match=r"step answer .* is completed"):
            await handle.signal("answer", {"a": 9})
        assert "is completed" in await refused(db, handle.run_id, "answer", "{}", 0)

        cancelled = await app.executor.start(flow)
        await until(lambda: _waits(db, cancelled.run_id))
        assert await cancelled.cancel()
        with pytest.raises(NotWaiting, match=r"step answer .* is failed"):
            await cancelled.signal("answer", {"a": 1})


async def test_a_signal_past_all_checks_that_does_not_fit_fails_the_step_behind_it(
    database_url: str, db: Database
) -> None:
    flow = waiting()
    async with started(database_url, flow) as app:
        for payload in ('{"a": "x"}', "null", None):
            handle = await app.executor.start(flow)
            await until(lambda run_id=handle.run_id: _waits(db, run_id))
            await sql(db, "select pgflow.signal(%s, 'answer', %s::jsonb)", handle.run_id, payload)
            with pytest.raises(RunFailed, match=f"{handle.run_id}.*total"):
                await handle.result(timeout=30)


RUBBISH: list[Any] = [
    "rubbish",
    7,
    None,
    [],
    [{"run_id": 1}],
    {},
    {"run_id": None},
    {"run_id": 5, "step_slug": "say", "task_index": 0},
    {"run_id": "no uuid", "step_slug": "say", "task_index": 0},
    {"run_id": {"a": [1]}, "step_slug": {"b": 2}},
    {"messages": "what is this?", "complexity": "simple"},
]


def _near_misses(run_id: Any) -> list[Any]:
    """Messages that name a run that is, or might be, and no task that is to be done."""
    named = {"flow_slug": "echo", "run_id": str(run_id), "step_slug": "say", "task_index": 0}
    return [
        named,
        named | {"run_id": str(uuid4())},
        named | {"step_slug": "nothing"},
        named | {"step_slug": None},
        named | {"step_slug": {"say": 1}},
        named | {"task_index": 1},
        named | {"task_index": -1},
        named | {"task_index": 10**30},
        named | {"task_index": "first"},
        named | {"task_index": 0.5},
    ]


async def test_rubbish_on_a_flows_queue_holds_up_nobody(database_url: str, db: Database) -> None:
    flow = echo()
    async with started(database_url, flow) as app:
        ended = await app.executor.start(flow, "first")
        await ended.result(timeout=30)
        near = _near_misses(ended.run_id)
        texts = [json.dumps(one) for one in [*RUBBISH, *near, *RUBBISH]]
        await sql(db, "select pgmq.send_batch('echo', %s::text[]::jsonb[])", texts)
        assert await app.executor.execute(flow, "second", timeout=30) == "second"
        await until(lambda: _empty(db, "echo"))
        aside = await archived(db, "echo")
        assert [message for message, _ in aside] == RUBBISH * 2
        assert {reason for _, reason in aside} == {REASON}
        assert await ended.result(timeout=30) == "first"
    rows = await sql(db, "select status, attempts_count from pgflow.step_tasks")
    assert [tuple(row) for row in rows] == [("completed", 1)] * 2


async def test_a_message_on_another_flows_queue_is_put_aside_and_its_task_runs_where_it_should(
    database_url: str, db: Database
) -> None:
    mine, theirs = echo("mine"), echo("theirs")
    async with started(database_url, theirs):
        pass  # known to the database, and nobody here to run it
    async with started(database_url, mine) as app:
        handle = await app.executor.start("theirs", "for them")
        [message] = await messages(db, "theirs")
        await sql(db, "select pgmq.send('mine', %s::jsonb)", json.dumps(message))
        assert await app.executor.execute(mine, "for me", timeout=30) == "for me"
        await until(lambda: _empty(db, "mine"))
        [(aside, reason)] = await archived(db, "mine")
        assert (aside, reason) == (message, "its task is of another flow, which has a queue of its own")
        [task] = await tasks(db, handle.run_id)
        assert (task.status, task.attempts) == ("queued", 0)
    async with started(database_url, theirs) as app:
        assert await app.executor.result(handle.run_id, timeout=30) == "for them"


async def _empty(db: Database, queue: str) -> bool:
    return not await messages(db, queue)


async def test_rubbish_costs_foreign_workers_nothing(database_url: str, db: Database) -> None:
    async with started(database_url, echo()):
        pass
    [row] = await sql(db, "select run_id from pgflow.start_flow('echo', '1')")
    near = _near_misses(uuid4())
    texts = [json.dumps(one) for one in [*RUBBISH, *near]]
    await sql(db, "select pgmq.send_batch('echo', %s::text[]::jsonb[])", texts)
    worker_id = uuid4()
    await sql(
        db,
        "insert into pgflow.workers (worker_id, queue_name, function_name) values (%s, 'echo', 'foreign')",
        worker_id,
    )
    read = await sql(db, "select msg_id from pgmq.read('echo', 30, 100)")
    assert len(read) == len(texts) + 1
    found = await sql(
        db, "select run_id from pgflow.start_tasks('echo', %s, %s)", [one.msg_id for one in read], worker_id
    )
    assert [one.run_id for one in found] == [row.run_id]
    aside = await archived(db, "echo")
    assert [message for message, _ in aside] == RUBBISH
    assert {reason for _, reason in aside} == {REASON}


async def test_older_code_never_claims_what_only_newer_code_knows(database_url: str, db: Database) -> None:
    older, newer = echo("growing"), echo("growing")

    @newer.step
    async def more(say: Any) -> Any:
        return [say, "more"]

    async with started(database_url, older) as app:
        async with started(database_url, newer) as other:
            assert await other.executor.execute(newer, "a", timeout=30) == ["a", "more"]
        handle = await app.executor.start("growing__v2", "b")  # nobody is there who knows it
        assert await app.executor.execute(older, "c", timeout=30) == "c"
        await asyncio.gather(*(app.executor.execute("growing", n, timeout=30) for n in range(20)))
        assert [(task.status, task.attempts) for task in await tasks(db, handle.run_id)] == [("queued", 0)]
        async with started(database_url, newer):
            assert await handle.result(timeout=30) == {"more": ["b", "more"]}


async def test_a_schedule_whose_input_fits_no_more_tells_and_holds_up_nobody(
    database_url: str, db: Database
) -> None:
    each = Flow("each")

    @each.map
    async def double(x: int) -> int:
        return 2 * x

    async with started(database_url, each, echo()) as app:
        schedules = app.executor.schedules
        await schedules.put("wrong", "each", "* * * * * *", input={"not": "a list"})
        await schedules.put("right", "echo", "* * * * * *", input="fine")

        async def told() -> Any:
            known = {one.name: one for one in await schedules.list()}
            return known["wrong"].last_error and known["right"].last_run_id and known

        known = await until(told)
        assert "input is not an array" in known["wrong"].last_error
        assert known["wrong"].last_run_id is None
        assert known["right"].last_error is None
    assert not await sql(db, "select 1 from pgflow.runs where flow_slug = 'each'")


async def test_what_cannot_be_stored_of_a_handlers_words_is_its_own_fault(
    database_url: str, db: Database
) -> None:
    flow = Flow("words", base_delay=0, max_attempts=1)

    @flow.step
    async def tell(input: str, ctx: Context) -> Any:
        if input == "progress":
            await ctx.progress({"done": "\ud800"})
        if input == "details":
            return ctx.later(timeout=5, kind="signal", details={"of": "\0"})
        if input == "token":
            return Later(5, "signal", {"deep": [object()]}, None)
        return input

    async with started(database_url, flow) as app:
        for given in ("progress", "details", "token"):
            handle, said = await fails(app, flow, given)
            assert "step tell" in said or "tell: " in said
            [task] = await tasks(db, handle.run_id)
            assert task.status == "failed"
        assert await app.executor.execute(flow, "fine", timeout=30) == "fine"
