"""Watching a run: its events in an order that is never against the graph's, to its end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

from pgnexus.errors import StepFailed
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.runs.watch import _events
from tests.flow.running import started


def diamond(broken: bool = False) -> Flow:
    flow = Flow("diamond")

    @flow.step
    async def top(input: int) -> int:
        return input

    @flow.step
    async def left(top: int) -> int:
        return top + 1

    @flow.step
    async def right(top: int) -> int:
        if broken:
            raise StepFailed("torn")
        return top + 2

    @flow.step
    async def bottom(left: int, right: int) -> int:
        return left + right

    return flow


def kinds(events):
    return [(event.event_type, event.step) for event in events]


async def collect(handle):
    return [event async for event in handle.watch()]


def in_order(found, *wanted):
    places = [found.index(one) for one in wanted]
    return places == sorted(places)


async def test_whoever_watches_from_the_start_sees_everything_in_order(database_url):
    flow = diamond()
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, 1)
        events = await collect(handle)
    found = kinds(events)
    assert len(found) == len(set(found)) == 10
    assert found[0] == ("run:started", None)
    assert found[-1] == ("run:completed", None)
    for side in ("left", "right"):
        assert in_order(found, ("step:started", "top"), ("step:completed", "top"), ("step:started", side))
        assert in_order(found, ("step:started", side), ("step:completed", side), ("step:started", "bottom"))
    assert {event.step: event.payload for event in events if event.event_type == "step:completed"} == {
        "top": {"output": 1},
        "left": {"output": 2},
        "right": {"output": 3},
        "bottom": {"output": 5},
    }
    assert events[-1].payload == {"output": {"bottom": 5}}
    assert [event.at for event in events] == sorted(event.at for event in events)


async def test_whoever_comes_late_sees_the_same(database_url):
    flow = diamond()
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, 1)
        early = await collect(handle)
        assert await collect(handle) == early


async def test_many_watch_at_once_also_from_another_process(database_url):
    flow = diamond()
    async with started(database_url, flow) as app, started(database_url) as other:
        await app.executor.pause(flow)
        handle = await app.executor.start(flow, 1)
        watchers = [collect(handle), collect(handle), collect(other.executor.handle(handle.run_id))]
        gathered = asyncio.gather(*watchers)
        await app.executor.resume(flow)
        first, *others = await gathered
    assert [kinds(events) for events in others] == [kinds(first)] * 2


async def test_a_failed_run_ends_with_its_failure(database_url):
    flow = diamond(broken=True)
    async with started(database_url, flow) as app:
        events = await collect(await app.executor.start(flow, 1))
    assert events[-1].event_type == "run:failed"
    # the other step may have been under way, and ended with the run
    [failed] = [event for event in events if event.event_type == "step:failed" and event.step == "right"]
    assert (failed.step, failed.payload) == ("right", {"error_message": "StepFailed: torn"})


async def test_skipped_steps_say_why_and_a_cancelled_run_ends(database_url):
    flow = Flow("skips")

    @flow.step(only_if={"ok": True})
    async def guarded(input: dict) -> int:
        return 1

    flow.wait("answer", timeout=60)
    async with started(database_url, flow) as app:
        handle = await app.executor.start(flow, {"ok": False})
        events = []
        async for event in handle.watch():
            events.append(event)
            if event.event_type == "step:started":
                await handle.cancel()
    assert events[-1].event_type == "run:cancelled"
    [skipped] = [event for event in events if event.event_type == "step:skipped"]
    assert skipped.step == "guarded"
    assert skipped.payload["skip_reason"] == "condition_unmet"


async def test_a_map_over_nothing_completes_without_having_been_started(database_url):
    flow = Flow("empty")

    @flow.map
    async def item(x: int) -> int:
        return x

    async with started(database_url, flow) as app:
        events = await collect(await app.executor.start(flow, []))
    assert kinds(events) == [("run:started", None), ("step:completed", "item"), ("run:completed", None)]


def test_transactions_that_commit_in_another_order_than_they_began_turn_no_events_round():
    start = datetime(2030, 1, 1, tzinfo=UTC)

    def at(seconds):
        return start + timedelta(seconds=seconds)

    run = {"run_id": uuid4(), "status": "completed", "output": None, "started_at": start, "ended_at": at(3)}
    rest = {"step_output": None, "error_message": None, "skip_reason": None, "initial_tasks": 1}

    def row(slug, begin, end, *deps):
        times = {"step_started_at": at(begin), "step_ended_at": at(end), "depends_on": list(deps)}
        return SimpleNamespace(step_slug=slug, step_status="completed", **times, **run, **rest)

    found = kinds(_events([row("a", 0, 5), row("b", 1, 2, "a")]))
    assert found[3:5] == [("step:started", "b"), ("step:completed", "b")]
    assert found[2] == ("step:completed", "a")
    assert found[-1] == ("run:completed", None)
