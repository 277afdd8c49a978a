"""Executor: runs started, waited for, asked after and steered."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from pydantic import BaseModel

from pgnexus.app import load_flow
from pgnexus.db.database import Database
from pgnexus.errors import (
    InvalidFlow,
    InvalidRequest,
    InvalidSettings,
    NotWaiting,
    RunCancelled,
    RunFailed,
    RunPending,
    ServiceMisused,
    StepFailed,
    UnknownFlow,
    UnknownRun,
)
from pgnexus.flow.built.actions import Actions
from pgnexus.flow.built.builder import FlowBuilder
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from tests.flow.running import started, tasks
from tests.system import sql, until


class Words(BaseModel):
    words: list[str]


class Count(BaseModel):
    letters: int


def counting() -> Flow:
    flow = Flow("counting")

    @flow.step
    async def words(input: Words) -> list[str]:
        return input.words

    @flow.map(over=words)
    async def length(word: str) -> int:
        return len(word)

    @flow.step
    async def total(length: list[int]) -> Count:
        return Count(letters=sum(length))

    return flow


def waiting() -> Flow:
    flow = Flow("waiting")
    flow.wait("answer", timeout=60, returns=int)
    return flow


async def test_a_flow_is_run_and_its_output_is_what_it_returns(database_url):
    flow = counting()
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow, Words(words=["a", "bc", "def"])) == Count(letters=6)
        assert await app.executor.execute("counting", {"words": []}) == Count(letters=0)


async def test_many_at_once_each_get_their_own(database_url):
    flow = counting()
    async with started(database_url, flow) as app:
        given = [["x" * n] * 3 for n in range(100)]
        outputs = await asyncio.gather(*(app.executor.execute(flow, {"words": words}) for words in given))
    assert [output.letters for output in outputs] == [3 * n for n in range(100)]


async def test_falsy_outputs_come_back_as_they_were(database_url):
    flow = Flow("falsy")

    @flow.step
    async def given(input):
        return input

    async with started(database_url, flow) as app:
        for value in (0, False, "", None, [], {}):
            output = await app.executor.execute(flow, value)
            assert output == value
            assert type(output) is type(value)


async def test_an_executor_without_a_worker_starts_what_another_process_runs(database_url):
    flow = counting()
    async with started(database_url) as alone, started(database_url, flow):
        assert await alone.executor.execute("counting", {"words": ["abc"]}) == {"total": {"letters": 3}}
        assert await alone.executor.execute(counting(), {"words": ["abc"]}) == Count(letters=3)


async def test_a_run_that_nobody_works_on_is_pending(database_url):
    async with started(database_url) as app:
        handle = await app.executor.start(counting(), {"words": []})
        with pytest.raises(RunPending, match="still under way") as caught:
            await handle.result(timeout=0.05)
        assert caught.value.run_id == handle.run_id
        with pytest.raises(RunPending):
            await app.executor.execute(counting(), {"words": []}, timeout=0.05)
        assert (await handle.status()).status == "started"


async def test_whoever_waits_is_told_when_the_executor_stops(database_url):
    async with started(database_url) as app:
        handle = await app.executor.start(counting(), {"words": []})
        waiter = asyncio.ensure_future(handle.result())
        watcher = asyncio.ensure_future(_all(handle.watch()))
        await until(_value(lambda: app.executor._waiters._ends and app.executor._waiters._changes))
    with pytest.raises(ServiceMisused, match="which goes on"):
        await waiter
    with pytest.raises(ServiceMisused, match="which goes on"):
        await watcher


async def test_an_executor_that_was_stopped_says_so(database_url):
    async with started(database_url) as app:
        executor = app.executor
        handle = await executor.start(counting(), {"words": []})
    for ask in (lambda: executor.start("counting"), lambda: executor.execute("counting"), handle.result):
        with pytest.raises(ServiceMisused, match="not running"):
            await ask()
    with pytest.raises(ServiceMisused, match="not running"):
        await _all(handle.watch())
    with pytest.raises(ServiceMisused, match="closed"):
        await handle.status()


async def test_an_unknown_flow_is_refused(database_url):
    async with started(database_url) as app:
        with pytest.raises(UnknownFlow, match='no flow "nothing"'):
            await app.executor.start("nothing")
        with pytest.raises(UnknownFlow):
            await app.executor.pause("nothing")


async def test_an_input_that_does_not_fit_is_refused_before_anything_is_stored(database_url, db):
    flow = counting()
    async with started(database_url, flow) as app:
        with pytest.raises(InvalidRequest, match="words"):
            await app.executor.start(flow, {"wrong": 1})
        with pytest.raises(InvalidRequest, match="words"):
            await app.executor.start("counting", {"words": 7})
    assert not await sql(db, "select 1 from pgflow.runs")


async def test_a_root_map_wants_a_list_also_when_only_the_database_knows_the_flow(database_url):
    flow = Flow("doubled")

    @flow.map
    async def double(x: int) -> int:
        return 2 * x

    async with started(database_url, flow), started(database_url) as other:
        with pytest.raises(InvalidRequest, match="input is not an array"):
            await other.executor.start("doubled", 7)
        assert await other.executor.execute("doubled", [1, 2]) == {"double": [2, 4]}


async def test_the_same_key_starts_once(database_url, db):
    flow = counting()
    async with started(database_url, flow) as app:
        first = await app.executor.start(flow, {"words": ["a"]}, key="daily")
        again = await app.executor.start("counting", {"words": ["a"]}, key="daily")
        assert (first.created, again.created) == (True, False)
        assert again.run_id == first.run_id
        assert await app.executor.execute(flow, {"words": ["a"]}, key="daily") == Count(letters=1)
        with pytest.raises(InvalidRequest, match="used before"):
            await app.executor.start(flow, {"words": ["b"]}, key="daily")
        with pytest.raises(InvalidRequest, match="not both"):
            await app.executor.start(flow, {"words": ["b"]}, key="daily", run_id=uuid4())
    [row] = await sql(db, "select count(*) as runs from pgflow.runs")
    assert row.runs == 1


async def test_one_bad_start_among_many_spoils_no_other(database_url):
    flow = counting()
    async with started(database_url, flow) as app:
        taken = uuid4()
        await app.executor.start(flow, {"words": ["a"]}, run_id=taken)
        asked = [
            app.executor.start(flow, {"words": ["b"] * n}, run_id=taken if n == 3 else None) for n in range(8)
        ]
        handles = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(handles.pop(3), InvalidRequest)
        outputs = await asyncio.gather(*(handle.result() for handle in handles))
    assert [output.letters for output in outputs] == [0, 1, 2, 4, 5, 6, 7]


async def test_a_failed_run_names_its_step_and_can_be_retried(database_url):
    flow, calls = Flow("shaky"), []

    @flow.step
    async def first(input: int) -> int:
        calls.append("first")
        return input

    @flow.step
    async def second(first: int) -> int:
        calls.append("second")
        if calls.count("second") == 1:
            raise StepFailed("not today")
        return first + 1

    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, 1)
        with pytest.raises(RunFailed, match="step second: StepFailed: not today") as caught:
            await handle.result()
        assert caught.value.run_id == handle.run_id
        assert (await handle.status()).step("second").status == "failed"
        assert await handle.retry()
        assert await handle.result() == 2
        assert calls == ["first", "second", "second"]
        assert not await handle.retry()


async def test_a_cancelled_run_ends_at_once_and_its_waiter_knows(database_url):
    flow = waiting()
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow)
        waiter = asyncio.ensure_future(handle.result())
        assert await handle.cancel()
        with pytest.raises(RunCancelled):
            await waiter
        assert (await handle.status()).status == "cancelled"
        assert not await handle.cancel()


async def test_what_is_asked_of_an_unknown_run_says_so(database_url):
    async with started(database_url) as app:
        handle = app.executor.handle(uuid4())
        for ask in (handle.status, handle.result, handle.cancel, handle.retry, lambda: handle.signal("x")):
            with pytest.raises(UnknownRun, match=str(handle.run_id)):
                await ask()
        with pytest.raises(UnknownRun):
            await _all(handle.watch())


async def test_status_tells_of_every_step_how_far_it_is(database_url):
    flow, go = Flow("told"), asyncio.Event()

    @flow.step
    async def items(input: int) -> list[int]:
        return list(range(input))

    @flow.map(over=items)
    async def item(x: int, ctx: Context) -> int:
        if x == 1:
            await ctx.progress({"pages": 7})
            await go.wait()
        return x

    @flow.step
    async def end(item: list[int]) -> int:
        return len(item)

    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, 3)

        async def told():
            status = await handle.status()
            step = status.step("item")
            return status if step.progress and step.tasks_done == 2 else None

        status = await until(told)
        assert (status.status, status.flow, status.ended_at) == ("started", "told", None)
        assert [(step.slug, step.kind, step.status, step.depends_on) for step in status.steps] == [
            ("items", "single", "completed", ()),
            ("item", "map", "started", ("items",)),
            ("end", "single", "created", ("item",)),
        ]
        step = status.step("item")
        assert (step.tasks_total, step.tasks_running, step.attempts) == (3, 1, 3)
        assert step.progress == {1: {"pages": 7}}
        go.set()
        assert await handle.result() == 3
        assert (await handle.status()).ended_at is not None
        with pytest.raises(KeyError):
            status.step("nothing")


async def test_runs_are_found_by_flow_state_and_time(database_url):
    flow, other = counting(), waiting()
    async with started(database_url, flow, other) as app:
        executor = app.executor
        done = await executor.start(flow, {"words": []})
        await done.result()
        open_run = await executor.start(other)
        await (await executor.start(other)).cancel()

        async def found(**filters):
            return [run.run_id for run in await executor.runs(**filters)]

        assert (await found())[1:] == [open_run.run_id, done.run_id]
        assert await found(flow="counting") == [done.run_id]
        assert await found(status="started") == [open_run.run_id]
        assert len(await found(status="cancelled", flow="waiting")) == 1
        assert len(await found(limit=2)) == 2
        later = datetime.now(UTC) + timedelta(hours=1)
        assert await found(since=later) == []
        assert len(await found(until=later)) == 3
        with pytest.raises(InvalidRequest, match="use one of started, completed, failed, cancelled"):
            await executor.runs(status="ended")
        with pytest.raises(InvalidRequest, match="time zone"):
            await executor.runs(since=datetime(2030, 1, 1))


async def test_a_paused_flow_starts_nothing_until_it_is_resumed(database_url, db):
    flow = counting()
    async with started(database_url, flow) as app:
        await app.executor.pause(flow)
        handle = await app.executor.start(flow, {"words": ["ab"]})
        app.flows.worker.wake()
        await app.flows.worker._looper._work()
        assert [task.status for task in await tasks(db, handle.run_id)] == ["queued"]
        await app.executor.resume("counting")
        assert await handle.result() == Count(letters=2)


async def test_a_changed_flow_is_a_new_version_and_old_runs_end_as_they_began(database_url):
    old = waiting()
    async with started(database_url, old) as app:
        handle = await app.executor.start(old)
        await until(lambda: _waits(handle, "answer"))
        new = waiting()

        @new.step
        async def doubled(answer: int) -> int:
            return 2 * answer

        async with started(database_url, new) as newer:
            fresh = await newer.executor.start("waiting")
            await until(lambda: _waits(fresh, "answer"))
            await handle.signal("answer", 1)
            await fresh.signal("answer", 1)
            assert await handle.result() == 1
            assert await fresh.result() == 2
            assert (await fresh.status()).flow == "waiting__v2"


async def test_two_flows_of_one_name_are_refused(database_url):
    with pytest.raises(InvalidFlow, match="two flows of this name"):
        async with started(database_url, counting(), counting()):
            pass


async def test_a_flow_built_at_run_time_is_run_by_every_worker_with_its_actions(database_url):
    actions, strange = Actions(), Actions()

    @actions.add
    async def double(x: int) -> int:
        return 2 * x

    builder = FlowBuilder(actions)
    built = builder.build(
        {
            "name": "made",
            "steps": [
                {"slug": "a", "use": "double", "with": {"x": "{input.x}"}},
                {"slug": "b", "use": "double", "with": {"x": "{a}"}},
            ],
        }
    )
    async with (
        started(database_url, builder=FlowBuilder(strange)) as other,
        started(database_url, builder=FlowBuilder(actions)),
    ):
        assert await other.executor.execute(built, {"x": 3}, timeout=20) == 12


async def test_a_flow_is_found_by_its_modules_name(database_url):
    flow = load_flow("tests.flow.a_flow:flow")
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow, "Ann") == "Hello Ann"


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("tests.flow.a_flow", "names no flow"),
        ("tests.flow.nowhere:flow", "cannot be imported"),
        ("tests.flow.a_flow:nothing", "is no Flow"),
    ],
)
def test_a_path_that_names_no_flow_says_what_is_wrong(path, match):
    with pytest.raises(InvalidSettings, match=match):
        load_flow(path)


async def test_the_callers_role_may_all_of_it(caller_url):
    flow, actions = counting(), Actions()

    @actions.add
    async def double(x: int) -> int:
        return 2 * x

    builder = FlowBuilder(actions)
    built = builder.build(
        {"name": "made", "steps": [{"slug": "a", "use": "double", "with": {"x": "{input.x}"}}]}
    )
    async with started(caller_url, flow, builder=builder) as app:
        assert await app.executor.execute(built, {"x": 2}) == 4
        handle = await app.executor.start(flow, {"words": ["ab"]})
        assert (await _all(handle.watch()))[-1].event_type == "run:completed"
        assert (await handle.status()).status == "completed"
        assert not await handle.cancel()
        assert not await handle.retry()
        await app.executor.pause(flow)
        await app.executor.resume(flow)
        assert len(await app.executor.runs(flow="counting")) == 1
        await app.executor.schedules.put("nightly", "counting", "0 3 * * *")


async def test_a_signal_for_a_step_that_does_not_wait_is_refused(database_url):
    flow = counting()
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, {"words": []})
        await handle.result()
        with pytest.raises(NotWaiting, match="total"):
            await handle.signal("total", {"letters": 1})
        with pytest.raises(NotWaiting, match="no such step"):
            await handle.signal("nothing")


async def _all(events):
    return [event async for event in events]


async def _waits(handle, step):
    return (await handle.status()).step(step).waits_for


def _value(look):
    async def value():
        return look()

    return value


async def test_nothing_is_left_over(database_url, db: Database):
    flow = counting()
    async with started(database_url, flow) as app:
        await app.executor.execute(flow, {"words": ["a", "b"]})
        await until(_value(lambda: app.flows.worker.in_flight == 0))
    rows = await sql(db, "select 1 from pgmq.q_counting")
    assert rows == []
