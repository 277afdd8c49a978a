"""Deferred steps: a handler answers later, and somebody else brings its output."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from pgnexus.errors import InvalidRequest, NotWaiting, RunFailed
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.later import Later
from pgnexus.flow.service import FlowService
from tests.flow.running import started, tasks
from tests.system import sql, until


class Questions:
    """A kind that stores what it is asked in the transaction that defers."""

    grace = 0.0

    def __init__(self):
        self.asked = []

    def keeps(self, details):
        return details

    async def ask(self, connection, waiting):
        for one in waiting:
            await connection.execute(
                "insert into questions values (%s, %s)", [one.token, one.details["text"]]
            )
        self.asked += waiting


def asking(*, kind="question", timeout=60, token=None) -> Flow:
    flow = Flow("asking", base_delay=0)

    @flow.map
    async def ask(text: str):
        return Later(timeout, kind, {"text": text}, token)

    return flow


@pytest.fixture
async def questions(db, monkeypatch):
    """The kind, known to every FlowService of this test."""
    await sql(db, "create table questions (token uuid, text varchar(10))")
    kind = Questions()
    original = FlowService.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **{**kwargs, "kinds": {**(kwargs.get("kinds") or {}), "question": kind}})

    monkeypatch.setattr(FlowService, "__init__", init)
    return kind


async def waits(handle, step):
    return (await handle.status()).step(step).waits_for


async def test_a_person_decides_by_a_signal(database_url):
    flow = Flow("approval")

    @flow.step
    async def draft(input: str) -> str:
        return f"Dear {input}"

    flow.wait("approved", timeout=3600, depends_on=draft, returns=bool)

    @flow.step
    async def sent(draft: str, approved: bool) -> str:
        return draft if approved else "nothing"

    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, "Ann")
        with pytest.raises(NotWaiting):
            await handle.signal("sent", "no")
        assert await until(lambda: waits(handle, "approved")) == "signal"
        step = (await handle.status()).step("approved")
        assert step.tasks_running == 0
        assert step.waits_until is not None
        with pytest.raises(InvalidRequest, match="approved"):
            await handle.signal("approved", "perhaps")
        await handle.signal("approved", True)
        assert await handle.result() == "Dear Ann"
        with pytest.raises(NotWaiting):
            await handle.signal("approved", False)


async def test_a_thousand_that_wait_hold_no_slot_and_no_lease(database_url, db):
    flow = Flow("patient")

    @flow.map
    async def answer(x: int, ctx: Context):
        return ctx.later(timeout=3600)

    async with started(database_url, flow, flow_concurrency=50) as app:
        handle = await app.executor.start(flow, list(range(1000)))

        async def all_wait():
            found = await sql(
                db, "select count(*) as n from pgflow.step_tasks where deferred_until is not null"
            )
            return found[0].n == 1000

        await until(all_wait)
        await until(lambda: _true(app.flows.worker.in_flight == 0))
        assert {task.last_worker_id for task in await tasks(db, handle.run_id)} == {None}
        tokens = await sql(db, "select task_index, deferral_token as token from pgflow.step_tasks")
        await sql(
            db,
            "select pgflow.complete_deferred(%s, %s::text[]::jsonb[])",
            [row.token for row in tokens],
            [str(row.task_index * 2) for row in tokens],
        )
        assert await handle.result() == [2 * x for x in range(1000)]


async def test_each_task_of_a_map_waits_for_its_own(database_url):
    flow = Flow("votes")

    @flow.map
    async def vote(name: str, ctx: Context):
        return ctx.later(timeout=60, details={"who": name})

    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, ["Ann", "Bob"])
        await until(lambda: waits(handle, "vote"))
        for index in (1, 0):
            await until(lambda index=index: _signalled(handle, "vote", index))
        assert await handle.result() == [0, 1]


async def test_what_is_to_be_waited_for_is_asked_in_the_transaction_that_defers(database_url, db, questions):
    flow = asking()
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, ["why", "how"])
        await until(lambda: waits(handle, "ask"))
        stored = await until(lambda: _two(db))
        assert sorted(row.text for row in stored) == ["how", "why"]
        for row in stored:
            output = f'"{row.text}!"'
            await sql(
                db, "select pgflow.complete_deferred(array[%s::uuid], array[%s::jsonb])", row.token, output
            )
        assert await handle.result() == ["why!", "how!"]
    [one, _] = sorted(questions.asked, key=lambda waiting: waiting.task_index)
    assert (one.run_id, one.flow, one.step, one.task_index) == (handle.run_id, "asking", "ask", 0)
    assert one.details == {"text": "why"}
    assert one.deadline is not None


async def test_a_question_that_cannot_be_stored_fails_alone(database_url, db, questions):
    flow = Flow("asking")

    @flow.map(when_exhausted="skip")
    async def ask(text: str):
        return Later(60, "question", {"text": text})

    async with started(database_url, flow) as app:
        good = await app.executor.start(flow, ["short"])
        bad = await app.executor.start(flow, ["much too long for its column"])
        await bad.result()
        [task] = await tasks(db, bad.run_id)
        assert task.status == "failed"
        assert "too long" in task.error
        assert await until(lambda: waits(good, "ask")) == "question"
    assert [row.text for row in await sql(db, "select text from questions")] == ["short"]


async def test_a_kind_that_breaks_fails_the_step_and_no_other(database_url, questions):
    flow = asking()
    ask = questions.ask

    async def breaks(connection, waiting):
        if any(one.details["text"] == "bad" for one in waiting):
            raise LookupError("no such oracle")
        await ask(connection, waiting)

    questions.ask = breaks
    async with started(database_url, flow) as app:
        good = await app.executor.start(flow, ["good"])
        bad = await app.executor.start(flow, ["bad"])
        with pytest.raises(RunFailed, match="LookupError: no such oracle"):
            await bad.result()
        assert await until(lambda: waits(good, "ask")) == "question"


async def test_a_kind_that_nobody_knows_fails_the_step(database_url):
    flow = asking(kind="oracle")
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, ["why"])
        with pytest.raises(RunFailed, match="nobody here asks for 'oracle'"):
            await handle.result()


async def test_past_its_deadline_a_waiting_step_fails(database_url):
    flow = asking(kind="signal", timeout=0.2)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, ["why"])
        with pytest.raises(RunFailed, match="deadline"):
            await handle.result()


async def test_the_handlers_own_token_is_the_one_that_counts(database_url, db):
    token: UUID = uuid4()
    flow = asking(kind="signal", token=token)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, ["why"])
        await until(lambda: waits(handle, "ask"))
        done = await sql(db, "select pgflow.complete_deferred(array[%s::uuid], array['7'::jsonb])", token)
        assert len(done) == 1
        assert await handle.result() == [7]


async def test_waiting_outlasts_the_process_that_began_it(database_url):
    flow = Flow("long")
    flow.wait("answer", timeout=3600)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow)
        await until(lambda: waits(handle, "answer"))
    async with started(database_url) as other:
        await other.executor.signal(handle.run_id, "answer", 7)
        assert await other.executor.result(handle.run_id) == {"answer": 7}


async def _signalled(handle, step, index):
    try:
        await handle.signal(step, index, task_index=index)
    except NotWaiting:  # not yet
        return False
    return True


async def _two(db):
    rows = await sql(db, "select token, text from questions")
    return rows if len(rows) == 2 else None


async def _true(value):
    return value
