"""The moment at which nothing can run any more, and what waits then."""

from __future__ import annotations

import asyncio

import pytest

import pgnexus
from pgnexus.flow.define.graph import Flow
from pgnexus.testing import FakeLLM, Idle, drain
from tests.flow.running import started
from tests.system import fast, running, sql


async def test_it_waits_for_what_runs_and_for_what_comes_of_it(database_url, db):
    flow, begun, go, ended = Flow("chain"), asyncio.Event(), asyncio.Event(), []

    @flow.step
    async def first(input: int) -> list[int]:
        begun.set()
        await go.wait()
        return list(range(input))

    @flow.map(over=first)
    async def each(one: int) -> int:
        ended.append(one)
        return one

    async with started(database_url, flow) as app:
        await app.executor.start(flow, 50)
        await begun.wait()
        waiter = asyncio.ensure_future(drain(app.executor))
        with pytest.raises(TimeoutError, match=r"not idle within 0\.2 s: 1 tasks running"):
            await drain(db, timeout=0.2)
        assert not waiter.done()
        go.set()
        assert await waiter == Idle(0, 0, 0, 0, 0, 0)
        assert len(ended) == 50
    assert {row.status for row in await sql(db, "select status from pgflow.runs")} == {"completed"}


async def test_it_says_what_nobody_runs(database_url):
    flow = Flow("nobodys")
    flow.wait("answer", timeout=60)
    async with started(database_url) as app:
        await app.executor.start(flow)
        with pytest.raises(TimeoutError, match="1 messages on nobodys"):
            await drain(app.executor, timeout=0.2)


async def test_tasks_of_a_paused_flow_wait(database_url):
    flow = Flow("paused")
    flow.step(slug="a")(lambda input: input)
    async with started(database_url, flow) as app:
        await app.executor.pause(flow)
        handle = await app.executor.start(flow, 1)
        assert (await drain(app.executor)).paused == 1
        await app.executor.resume(flow)
        assert (await drain(app.executor)).paused == 0
        assert await handle.result() == 1


async def test_it_waits_for_requests_until_their_results_are_stored(database_url):
    go = asyncio.Event()

    async def answer(request: pgnexus.LLMRequest) -> str:
        await go.wait()
        return "done"

    async with pgnexus.open(fast(database_url), providers=FakeLLM(answer)) as llm:
        handles = [await llm.enqueue("simple", str(n)) for n in range(20)]
        waiter = asyncio.ensure_future(drain(llm))
        with pytest.raises(TimeoutError, match="tasks running"):
            await drain(llm, timeout=0.3)
        go.set()
        await waiter
        assert {(await llm.job_result(one.request_id)).status for one in handles} == {"success"}


async def test_requests_that_no_nexus_takes_are_no_rest(database_url):
    async with running(database_url, nexus=False) as llm:
        await llm.enqueue("simple", "x")
        with pytest.raises(TimeoutError, match="1 messages on ai_requests"):
            await drain(llm, timeout=0.2)


async def test_nothing_at_all_is_idle(database_url):
    assert await drain(database_url) == Idle(0, 0, 0, 0, 0, 0)
