"""Time passes for what waits, and nothing else changes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

import pgnexus
from pgnexus.errors import ProviderUnavailable, RequestTimeout, RetryLater, RunFailed, ServiceMisused
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.schedules.cron import Cron
from pgnexus.flow.schedules.schedule import Schedules
from pgnexus.testing import FakeLLM, advance, drain
from tests.flow.running import started
from tests.system import fast, running, sql, until

HOUR = timedelta(hours=1)


async def test_a_retry_comes_when_its_time_has_passed(database_url):
    flow, attempts = Flow("again"), []

    @flow.step
    async def later(input: int) -> int:
        attempts.append(input)
        if len(attempts) == 1:
            raise RetryLater("not yet", delay=3600)
        return input

    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, 7)
        assert (await drain(app.executor)).delayed == 1
        await advance(app.executor, HOUR / 2)
        assert (await drain(app.executor)).delayed == 1
        await advance(app.executor, HOUR / 2)
        assert await handle.result(timeout=20) == 7


async def test_start_delays_pass(database_url):
    flow = Flow("delayed")
    flow.step(slug="a", start_delay=7200)(lambda input: input)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, 1)
        assert (await drain(app.executor)).delayed == 1
        await advance(app.executor, 2 * HOUR)
        assert await handle.result(timeout=20) == 1


async def test_a_wait_for_a_signal_ends_at_its_deadline(database_url, db):
    flow = Flow("waits")
    flow.wait("answer", timeout=HOUR)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow)
        assert (await drain(app.executor)).signals == 1
        await advance(db, HOUR / 2)
        assert (await drain(db)).signals == 1
        await advance(database_url, HOUR / 2)
        with pytest.raises(RunFailed, match="step answer: no answer came before its deadline"):
            await handle.result(timeout=20)


async def test_a_scheduled_request_is_sent_when_it_is_due(database_url):
    async with pgnexus.open(fast(database_url), providers=FakeLLM("hi")) as llm:
        handle = await llm.enqueue("simple", "x", delay=3600, timeout=600)
        assert (await drain(llm)).requests == 1
        await advance(llm, HOUR / 2)
        assert (await drain(llm)).requests == 1
        await advance(llm, HOUR / 2)
        assert (await drain(llm)).requests == 0
        assert (await handle.result(timeout=20)).text == "hi"


async def test_a_request_that_nobody_takes_up_is_overdue(database_url):
    async with running(database_url, nexus=False) as llm:
        handle = await llm.enqueue("simple", "x", timeout=3600)
        await advance(llm, HOUR)
        with pytest.raises(RequestTimeout):
            await handle.result(timeout=20)


async def test_a_provider_that_is_down_is_asked_again_later(database_url):
    fake = FakeLLM(ProviderUnavailable("down"))
    async with pgnexus.open(fast(database_url, retry_base_delay=600), providers=fake) as llm:
        handle = await llm.enqueue("gpt-4o", "x", timeout=36000)
        assert (await drain(llm)).delayed == 1
        fake.answer = "up"
        await advance(llm, 3600)
        assert (await handle.result(timeout=20)).text == "up"
        assert len(fake.calls) == 2


async def test_a_request_between_two_attempts_is_overdue_too(database_url, db):
    fake = FakeLLM(ProviderUnavailable("down"))
    async with pgnexus.open(fast(database_url, retry_base_delay=600), providers=fake) as llm:
        handle = await llm.enqueue("gpt-4o", "x", timeout=36000)
        await drain(llm)
        await advance(llm, 36000)
        with pytest.raises(RequestTimeout):
            await handle.result(timeout=20)
        assert (await drain(llm)).delayed == 0
        assert len(fake.calls) == 1


async def test_an_llm_step_waits_no_longer_than_it_says(database_url):
    flow, hangs = Flow("asks"), asyncio.Event()
    flow.llm(slug="ask", timeout=3600, max_attempts=1)(lambda input: "?")

    async def answer(request: pgnexus.LLMRequest) -> str:
        await hangs.wait()
        return "late"

    settings = fast(database_url)
    async with pgnexus.executor(flow, settings=settings, providers=FakeLLM(answer)) as executor:
        handle = await executor.start(flow)
        await until(lambda: waits(handle))
        await advance(executor, 3700)
        with pytest.raises(RunFailed, match="step ask"):
            await handle.result(timeout=20)
        hangs.set()


async def waits(handle: pgnexus.RunHandle) -> bool:
    return (await handle.status()).step("ask").waits_for == "llm"


async def test_time_may_pass_while_everything_runs(database_url, caplog):
    flow = Flow("busy")

    @flow.step
    async def numbers(input: int) -> list[int]:
        return list(range(input))

    @flow.map(over=numbers, base_delay=1)
    async def each(one: int, ctx: pgnexus.Context) -> int:
        if ctx.attempt == 1 and one % 3 == 0:
            raise RetryLater("not yet", delay=one)
        return one

    async with pgnexus.executor(flow, settings=fast(database_url), providers=FakeLLM("hi")) as executor:
        handles = [await executor.start(flow, 50) for _ in range(10)]
        for _ in range(20):
            await advance(executor, 5)
        await drain(executor)
        assert [await handle.result(timeout=20) for handle in handles] == [list(range(50))] * 10
    assert "deadlock" not in caplog.text


async def test_deadlines_go_along_in_messages(database_url, db):
    async with running(database_url, nexus=False) as llm:
        await llm.enqueue("simple", "x", timeout=7200)
        await llm.enqueue("simple", "x", timeout=7200, delay=10800)
        await advance(llm, HOUR)
    [row] = await sql(db, """
        select (select q.message ->> 'deadline' from pgmq.q_ai_requests q)::timestamptz - now() as sent,
               (select s.message ->> 'deadline' from pgnexus.scheduled_requests s)::timestamptz - now() as waiting,
               array(select j.deadline - now() from pgnexus.job_results j order by 1) as stored""")  # fmt: skip
    assert [row.sent, row.waiting] == row.stored
    assert HOUR - timedelta(minutes=5) < row.sent <= HOUR


async def test_idempotency_keys_expire(database_url):
    async with running(database_url, nexus=False, idempotency_ttl=3600) as llm:
        first = await llm.enqueue("simple", "x", idempotency_key="k")
        await advance(llm, HOUR / 2)
        assert not (await llm.enqueue("simple", "x", idempotency_key="k")).created
        await advance(llm, HOUR)
        again = await llm.enqueue("simple", "x", idempotency_key="k")
        assert again.created
        assert again.request_id != first.request_id


@pytest.mark.parametrize(("catch_up", "runs"), [("once", 1), ("all", 5), ("skip", 1)])
async def test_schedules_fire_for_the_times_that_passed(database_url, db, catch_up, runs):
    flow = Flow("report")
    flow.step(slug="at")(lambda input: input)
    async with started(database_url, flow) as app:
        schedules = app.executor.schedules
        await schedules.put("hourly", "report", "30 * * * *", input="{scheduled_at}", catch_up=catch_up)
        [schedule] = await schedules.list()
        times = Cron("30 * * * *").times(schedule.next_fire_at - timedelta(seconds=1))
        wanted = [next(times) for _ in range(6)]
        await advance(app.executor, wanted[4] - datetime.now(UTC) + timedelta(seconds=20))
        await drain(app.executor)
        fired = [row.input for row in await sql(db, "select input from pgflow.runs order by input #>> '{}'")]
        expected = wanted[:5] if catch_up == "all" else wanted[4:5]
        assert [datetime.fromisoformat(text) for text in fired] == expected
        assert len(fired) == runs
        await advance(app.executor, HOUR)
        await drain(app.executor)
        fired = [row.input for row in await sql(db, "select input from pgflow.runs order by input #>> '{}'")]
        assert [datetime.fromisoformat(text) for text in fired] == [*expected, wanted[5]]


async def test_a_daily_schedule_fires_once_a_day_however_the_day_is_cut(database_url, db):
    flow = Flow("report")
    flow.step(slug="at")(lambda input: input)
    async with started(database_url, flow) as app:
        await app.executor.schedules.put("daily", "report", "0 3 * * *", time_zone="Europe/Berlin")
        for count in range(1, 4):
            for _ in range(4):
                await advance(app.executor, timedelta(hours=6))
            await drain(app.executor)
            assert (await sql(db, "select count(*) as runs from pgflow.runs"))[0].runs == count


async def test_a_paused_schedule_stays_as_it_is(database_url, db):
    schedules = Schedules(db)
    await schedules.put("s", "nothing", "@hourly", paused=True)
    before = await schedules.list()
    await advance(db, 10 * HOUR)
    assert await schedules.list() == before


@pytest.mark.parametrize("by", [0, -1, True, float("nan"), float("inf"), "1", timedelta(0)])
async def test_time_passes_forward_only(database_url, by):
    with pytest.raises(ServiceMisused, match="give seconds, or a timedelta"):
        await advance(database_url, by)
