"""Worker: tasks claimed, handlers run, outcomes stored, and what becomes of work when something goes wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import ContextVar
from uuid import UUID, uuid4

import pytest

from pgnexus.db.database import Database
from pgnexus.errors import InvalidOutput, RetryLater, RunFailed, StepFailed
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.later import Later
from pgnexus.messages import new_request_id
from tests.flow.running import started, tasks
from tests.system import sql, until


def one_step(handler, name="flow", **options) -> Flow:
    flow = Flow(name, base_delay=0)
    flow.step(**options)(handler)
    return flow


async def failed(app, flow, input=None) -> UUID:
    """The run_id of a run that fails."""
    handle = await app.executor.start(flow, input)
    with pytest.raises(RunFailed):
        await handle.result()
    return handle.run_id


class Nasty(Exception):
    def __init__(self):
        super().__init__(lambda: None)  # cannot be pickled

    def __str__(self):
        raise ValueError("no")


class Stray(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "attempts", "text"),
    [
        (ValueError("wrong\0\ud800"), 3, "ValueError: wrong\ufffd\ufffd"),
        (StepFailed("never"), 1, "StepFailed: never"),
        (InvalidOutput("odd"), 1, "InvalidOutput: odd"),
        (RetryLater("soon", delay=0.01), 3, "RetryLater: soon"),
        (Nasty(), 3, "Nasty: (its message cannot be had)"),
        (KeyError(), 3, "KeyError"),
        (Stray("lost"), 3, "Stray: lost"),
        (SystemExit(3), 3, "RuntimeError: step step: the handler raised SystemExit(3)"),
        (asyncio.CancelledError(), 3, "CancelledError"),
        (ValueError("x" * 10_000), 3, f"ValueError: {'x' * 3987}…"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_a_handler_raises_is_stored_and_tried_again_unless_that_is_no_use(
    database_url, db, error, attempts, text
):
    async def step(input):
        raise error

    flow = one_step(step)
    async with started(database_url, flow) as app:
        [task] = await tasks(db, await failed(app, flow))
    assert (task.status, task.attempts, task.error) == ("failed", attempts, text)


async def test_an_odd_delay_costs_the_step_its_backoff_only(database_url, db, caplog):
    async def step(input, ctx: Context):
        if ctx.attempt == 1:
            raise RetryLater("soon", delay=float("nan"))
        return ctx.attempt

    flow = one_step(step)
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow) == 2


async def test_a_failed_attempt_waits_for_its_delay_and_succeeds(database_url, db):
    attempts = []

    async def step(input, ctx: Context):
        attempts.append((ctx.attempt, time.monotonic()))
        if ctx.attempt == 1:
            raise RetryLater("not yet", delay=0.3)
        return "done"

    flow = one_step(step)
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow) == "done"
    (first, began), (second, went_on) = attempts
    assert (first, second) == (1, 2)
    assert went_on - began > 0.3


@pytest.mark.parametrize(
    ("output", "text"), [({1, 2}, "a set is not JSON"), ("x" * 2000, "more than max_message_bytes")]
)
async def test_an_output_that_cannot_be_stored_fails_its_step_at_once(database_url, db, output, text):
    async def step(input):
        return output

    flow = one_step(step)
    async with started(database_url, flow, max_message_bytes=1024) as app:
        [task] = await tasks(db, await failed(app, flow))
    assert task.attempts == 1
    assert text in task.error


async def test_a_handler_past_its_timeout_is_cancelled_and_its_attempt_counts(database_url, db):
    cancelled = []

    async def step(input):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    flow = one_step(step, timeout=1, max_attempts=2)
    async with started(database_url, flow) as app:
        [task] = await tasks(db, await failed(app, flow))
    assert (task.attempts, task.error, cancelled) == (2, "timed out after 1 s", [True, True])


async def test_timeouts_inside_a_handler_are_its_own(database_url):
    async def item(x):
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return x
        return None

    flow = Flow("flow")
    flow.map(item)
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow, list(range(20))) == list(range(20))


async def test_handlers_that_wait_run_side_by_side_but_never_more_than_there_are_slots(database_url):
    most = running = 0
    all_there = asyncio.Event()

    async def item(x):
        nonlocal most, running
        running += 1
        most = max(most, running)
        if running == 7:
            all_there.set()
        await all_there.wait()
        await asyncio.sleep(0)
        running -= 1
        return x

    flow = Flow("flow")
    flow.map(item)
    async with started(database_url, flow, flow_concurrency=7) as app:
        assert await app.executor.execute(flow, list(range(50))) == list(range(50))
    assert most == 7


async def test_no_handler_sees_another_ones_context(database_url):
    seen: ContextVar[int] = ContextVar("seen", default=-1)

    async def item(x):
        before = seen.get()
        seen.set(x)
        return before

    flow = Flow("flow")
    flow.map(item)
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow, list(range(30))) == [-1] * 30


async def test_handlers_that_are_not_async_do_not_hold_the_loop(database_url):
    def item(x):
        time.sleep(0.01)
        return x

    flow = Flow("flow")
    flow.map(item)
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow, [1, 2, 3]) == [1, 2, 3]


async def test_pure_steps_are_run_in_the_same_go_and_recorded_all_the_same(database_url, db):
    flow, workers = Flow("flow"), []

    @flow.step
    async def first(input: int) -> int:
        workers.append(asyncio.current_task())
        return input + 1

    @flow.step(pure=True)
    async def second(first: int) -> int:
        workers.append(asyncio.current_task())
        return first * 2

    @flow.step(pure=True)
    async def third(second: int) -> int:
        workers.append(asyncio.current_task())
        return second * 2

    @flow.step
    async def last(third: int) -> int:
        return third

    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, 1)
        assert await handle.result() == 8
        status = await handle.status()
    assert len(workers) == 3
    assert len(set(workers)) == 1
    assert [(step.status, step.tasks_done) for step in status.steps] == [("completed", 1)] * 4


async def test_a_pure_step_that_fails_does_so_in_a_task_of_its_own(database_url, db):
    flow, calls = Flow("flow", base_delay=0), []

    @flow.step
    async def first(input):
        calls.append("first")
        return 1

    @flow.step(pure=True, max_attempts=2)
    async def second(first):
        calls.append("second")
        raise ValueError("no")

    async with started(database_url, flow) as app:
        run_id = await failed(app, flow)
    found = {task.step_slug: (task.status, task.attempts, task.error) for task in await tasks(db, run_id)}
    assert found == {"first": ("completed", 1, None), "second": ("failed", 2, "ValueError: no")}
    assert calls == ["first", "second", "second", "second"]


async def test_what_a_transactional_step_writes_commits_with_its_completion_or_not_at_all(database_url, db):
    await sql(db, "create table notes (attempt int)")
    flow = Flow("flow", base_delay=0)

    @flow.step(transactional=True)
    async def first(input, ctx: Context):
        await ctx.connection.execute("insert into notes values (%s)", [ctx.attempt])
        if ctx.attempt == 1:
            raise ValueError("not this time")
        return ctx.attempt

    @flow.step
    async def second(first):
        return first

    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow) == 2
        outputs = await asyncio.gather(*(app.executor.execute(flow) for _ in range(20)))
    assert outputs == [2] * 20
    assert [row.attempt for row in await sql(db, "select attempt from notes")] == [2] * 21


async def test_a_transactional_step_that_gives_a_map_no_list_writes_nothing(database_url, db):
    await sql(db, "create table notes (attempt int)")
    flow = Flow("flow", base_delay=0)

    @flow.step(transactional=True)
    async def files(input, ctx: Context) -> list[str]:
        await ctx.connection.execute("insert into notes values (%s)", [ctx.attempt])
        return "no list"

    @flow.map(over=files)
    async def read(file: str):
        return file

    async with started(database_url, flow) as app:
        with pytest.raises(RunFailed, match=r"TYPE_VIOLATION. Produced string instead of array"):
            await app.executor.execute(flow)
    assert await sql(db, "select 1 from notes") == []


async def test_what_a_worker_of_another_language_left_lying_is_run_here(database_url, db):
    """It keeps no lease; its task's time is up."""

    async def step(input):
        return "done"

    flow = one_step(step)
    async with started(database_url, flow) as app:
        await app.executor.pause(flow.name)
        handle = await app.executor.start(flow)
        another = uuid4()
        await sql(
            db,
            "insert into pgflow.workers (worker_id, queue_name, function_name) values (%s, 'flow', 'x')",
            another,
        )
        await sql(db, "update pgflow.flows set paused_at = null")
        [claimed] = await sql(db, "select * from pgflow.start_tasks('flow', array[1]::bigint[], %s)", another)
        assert claimed.run_id == handle.run_id
        await sql(db, "update pgflow.step_tasks set started_at = now() - interval '2 minutes'")
    async with started(database_url, flow) as app:  # looks at its start, and then now and then
        assert await app.executor.result(handle.run_id, timeout=20) == "done"


async def test_a_transactional_step_whose_task_was_taken_away_writes_nothing(database_url, db):
    await sql(db, "create table notes (attempt int)")

    async def step(input, ctx: Context):
        await ctx.connection.execute("insert into notes values (1)")
        if ctx.attempt == 1:
            await sql(db, "update pgflow.step_tasks set attempts_count = 2")
        return ctx.attempt

    flow = one_step(step, transactional=True)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow)

        async def refused():
            return app.flows.worker.in_flight == 0 and (await tasks(db, handle.run_id))[0].attempts == 2

        await until(refused)
    assert await sql(db, "select 1 from notes") == []
    [task] = await tasks(db, handle.run_id)
    assert task.status == "started"


async def test_the_transaction_of_a_process_that_freezes_ends_soon_after_its_timeout(database_url):
    async def step(input, ctx: Context):
        cursor = await ctx.connection.execute("show idle_in_transaction_session_timeout")
        return (await cursor.fetchone())[0]

    flow = one_step(step, transactional=True, timeout=7)
    async with started(database_url, flow) as app:
        assert await app.executor.execute(flow) == "12s"
        [row] = await sql(app.db, "show idle_in_transaction_session_timeout")
        assert row[0] == "0"


async def test_a_transactional_step_may_answer_later(database_url, db):
    await sql(db, "create table notes (attempt int)")
    flow = Flow("flow")

    @flow.step(transactional=True)
    async def step(input, ctx: Context):
        await ctx.connection.execute("insert into notes values (1)")
        return Later(60)

    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow)

        async def waits():
            return (await handle.status()).step("step").waits_for

        assert await until(waits) == "signal"
        assert len(await sql(db, "select 1 from notes")) == 1
        await handle.signal("step", 7)
        assert await handle.result() == 7


async def test_the_context_knows_the_run(database_url, caplog):
    async def step(ctx: Context):
        with caplog.at_level(logging.INFO, logger="pgnexus"):
            ctx.log.info("hello")
        return [str(ctx.run_id), ctx.step, ctx.attempt, await ctx.flow_input()]

    flow = Flow("flow")

    @flow.step
    async def first(input):
        return 1

    flow.step(depends_on="first")(step)
    run_id = new_request_id()
    async with started(database_url, flow) as app:
        await app.executor.start(flow, {"a": 1}, run_id=run_id)
        assert await app.executor.result(run_id) == [str(run_id), "step", 1, {"a": 1}]
    assert f"run {run_id} step step: hello" in caplog.text


async def test_a_worker_that_stops_lets_finish_what_runs(database_url):
    began, go = asyncio.Event(), asyncio.Event()

    async def step(input):
        began.set()
        await go.wait()
        return "done"

    flow = one_step(step)
    async with started(database_url) as other:
        async with started(database_url, flow, drain_timeout=30) as app:
            handle = await app.executor.start(flow)
            await began.wait()
            asyncio.get_running_loop().call_later(0.05, go.set)
        assert (await other.executor.handle(handle.run_id).status()).status == "completed"


async def test_a_worker_that_stops_gives_back_what_does_not_finish_and_no_attempt_counts(database_url, db):
    began = []

    async def step(input, ctx: Context):
        began.append(ctx.attempt)
        if len(began) == 1:
            await asyncio.Event().wait()
        return ctx.attempt

    flow = one_step(step)
    async with started(database_url, flow, drain_timeout=0) as app:
        handle = await app.executor.start(flow)
        await until(_value(lambda: began))
    [task] = await tasks(db, handle.run_id)
    assert (task.status, task.attempts) == ("queued", 0)
    async with started(database_url, flow) as app:
        assert await app.executor.result(handle.run_id) == 1


async def test_a_worker_that_was_given_up_cancels_what_others_may_have_now(database_url, db):
    began, cancelled = [], []

    async def step(input):
        began.append(True)
        try:
            if len(began) == 1:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "done"

    flow = one_step(step)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow)
        await until(_value(lambda: began))
        worker_id = app.flows.registry.instance_id()
        await sql(db, "update pgflow.workers set stopped_at = now() where worker_id = %s", worker_id)
        assert await handle.result() == "done"
    assert (len(began), len(cancelled)) == (2, 1)


async def test_a_dead_workers_tasks_are_run_by_another(database_url, db):
    flow = one_step(_answer)
    async with started(database_url) as alone:
        handle = await alone.executor.start(flow)
        dead = uuid4()
        await sql(db, "select pgflow.heartbeat(%s, 'pgflow', 'a test', '1 second')", dead)
        claimed = await sql(db, "select * from pgflow.claim_tasks(array['flow'], %s, 10)", dead)
        assert len(claimed) == 1
        await sql(db, "update pgflow.workers set last_heartbeat_at = now() - interval '1 hour'")
        await sql(db, "update pgflow.workers set stopped_at = now() where worker_id = %s", dead)
        async with started(database_url, flow) as app:
            assert await app.executor.result(handle.run_id) == 2


async def test_tasks_claimed_in_a_call_that_broke_off_are_given_back(database_url, db, caplog):
    flow = one_step(_answer)
    async with started(database_url, flow) as app:
        await app.executor.pause(flow)
        handle = await app.executor.start(flow)
        worker = app.flows.worker
        async with db.connection() as connection, connection.transaction():
            await connection.execute("update pgflow.flows set paused_at = null")
            # what a call whose answer is lost leaves behind
            claim = "select * from pgflow.claim_tasks(array['flow'], %s, 10)"
            await connection.execute(claim, [app.flows.registry.instance_id()])
            await connection.execute("update pgflow.flows set paused_at = now()")
        assert [task.status for task in await tasks(db, handle.run_id)] == ["started"]
        worker.doubt()
        await until(lambda: _has_status(db, handle.run_id, "queued"))
        await app.executor.resume(flow)
        assert await handle.result() == 1
    assert "1 tasks had been claimed in calls that broke off" in caplog.text


async def test_claims_that_a_standby_still_knows_are_given_back_when_it_takes_over(database_url, db):
    flow = one_step(_answer)
    async with started(database_url, flow, poll_interval=60) as app:
        await app.executor.pause(flow)
        handle = await app.executor.start(flow)
        async with db.connection() as connection, connection.transaction():
            await connection.execute("update pgflow.flows set paused_at = null")
            claim = (
                "select * from pgflow.claim_tasks(array['flow'], %s, 10)"  # ended on a primary that is lost
            )
            await connection.execute(claim, [app.flows.registry.instance_id()])
        cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgnexus listener'"
        await sql(db, cut)
        assert await handle.result() == 1


async def test_lost_connections_lose_and_double_nothing(database_url, db):
    flow, calls = Flow("flow"), []

    @flow.step
    async def items(input: int) -> list[int]:
        return list(range(input))

    @flow.map(over=items)
    async def item(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0.001)
        return x

    async with started(database_url, flow, flow_concurrency=20) as app:
        waiter = asyncio.ensure_future(app.executor.execute(flow, 300, timeout=60))
        for share in range(1, 6):
            await until(_value(lambda share=share: len(calls) >= 50 * share))
            await sql(
                db,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()",
            )
        assert await waiter == list(range(300))
    rows = await sql(db, "select status, count(*) as tasks from pgflow.step_tasks group by 1")
    assert [(row.status, row.tasks) for row in rows] == [("completed", 301)]


async def test_a_handler_that_holds_the_loop_is_named(database_url, caplog):
    async def step(input):
        time.sleep(0.5)  # noqa: ASYNC251 - that is the fault
        return "done"

    flow = one_step(step)
    async with started(database_url, flow, flow_blocked_warning=0.1) as app:
        assert await app.executor.execute(flow) == "done"
    [said] = [
        record.getMessage() for record in caplog.records if "held the event loop" in record.getMessage()
    ]
    assert "step step[0]: its handler" in said
    assert "test_worker.py" in said
    assert "time.sleep(0.5)" in said


async def test_a_handler_that_holds_the_loop_past_its_timeout_loses_the_lease(database_url, db, caplog):
    held = []

    async def step(input, ctx: Context):
        if ctx.attempt == 1:
            time.sleep(3.5)  # noqa: ASYNC251 - that is the fault
        held.append(ctx.attempt)
        return ctx.attempt

    flow = one_step(step, timeout=1)
    settings = {"flow_blocked_warning": 0.1, "worker_lease": 1.0, "heartbeat_interval": 0.1}
    async with started(database_url, flow, **settings) as app:
        handle = await app.executor.start(flow)
        assert await handle.result() in (1, 2)
        [task] = await tasks(db, handle.run_id)
        assert task.status == "completed"
    assert "is past its timeout" in caplog.text


async def test_a_full_queue_does_not_starve_the_next(database_url):
    go, done = asyncio.Event(), []
    crowd, single = Flow("crowd"), Flow("single")

    @crowd.map
    async def item(x):
        done.append(x)
        await go.wait()
        return x

    @single.step
    async def only(input):
        done.append("only")
        return "only"

    async with started(database_url, crowd, single, flow_concurrency=2) as app:
        many = asyncio.ensure_future(app.executor.execute(crowd, list(range(50))))
        await until(_value(lambda: len(done) == 2))
        waiter = asyncio.ensure_future(app.executor.execute(single))
        await until(lambda: sql(app.flows._db, "select 1 as there from pgmq.q_single"))
        go.set()
        assert await waiter == "only"
        assert await many == list(range(50))
    assert done.index("only") < 50


async def test_a_step_that_is_unknown_here_is_left_to_others(database_url, db, caplog):
    flow = one_step(_answer)
    async with started(database_url, flow) as app:
        app.flows.worker._flows._plans["flow"].steps.clear()
        handle = await app.executor.start("flow", None)

        async def given_back():
            [task] = await sql(db, "select status, attempts_count, not_before from pgflow.step_tasks")
            return task.not_before and (task.status, task.attempts_count)

        assert await until(given_back) == ("queued", 0)
    assert f"run {handle.run_id}: flow._answer is unknown here" in caplog.text


async def test_an_idle_worker_asks_the_database_for_nothing(database_url):
    flow = one_step(_answer)
    async with started(database_url, flow, poll_interval=60, heartbeat_interval=30, worker_lease=120) as app:
        await app.executor.execute(flow)
        asked = []
        query = Database.query

        async def counted(self, name, params=None):
            asked.append(name)
            return await query(self, name, params)

        async def half_a_second_of_silence():  # what follows the run may take a moment
            asked.clear()
            await asyncio.sleep(0.5)
            return not asked

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Database, "query", counted)
            assert await until(half_a_second_of_silence)


async def _answer(input, ctx: Context):
    return ctx.attempt


async def _has_status(db, run_id, status):
    return [task.status for task in await tasks(db, run_id)] == [status]


def _value(look):
    async def value():
        return look()

    return value
