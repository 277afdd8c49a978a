"""Looper: wakes, waits, survives, stops."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pgnexus.errors import DatabaseUnavailable
from pgnexus.looper import Looper

NEVER = 3600.0


class Work:
    """Plays a script of outcomes; then rests until woken. Each round can be awaited."""

    def __init__(self, *script: float | Exception | None) -> None:
        self.script = list(script)
        self.rounds = 0
        self._changed = asyncio.Condition()

    async def __call__(self) -> float | None:
        async with self._changed:
            self.rounds += 1
            self._changed.notify_all()
        outcome = self.script.pop(0) if self.script else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def reached(self, rounds: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.rounds >= rounds)


async def test_zero_means_again_at_once_and_none_means_rest() -> None:
    work = Work(0, 0, None)
    looper = Looper("test", work, poll_interval=NEVER)
    looper.start()
    await work.reached(3)
    for _ in range(10):
        await asyncio.sleep(0)
    assert work.rounds == 3
    await looper.stop()
    assert work.rounds == 3


async def test_it_polls_without_being_woken() -> None:
    work = Work()
    looper = Looper("test", work, poll_interval=0.001)
    looper.start()
    await work.reached(5)
    await looper.stop()


async def test_a_pause_that_the_work_asks_for_ends_by_itself() -> None:
    work = Work(0.001)
    looper = Looper("test", work, poll_interval=NEVER)
    looper.start()
    await work.reached(2)
    await looper.stop()


async def test_a_wake_up_from_another_thread_arrives() -> None:
    work = Work()
    looper = Looper("test", work, poll_interval=NEVER)
    looper.start()
    await work.reached(1)
    await asyncio.sleep(0)
    thread = threading.Thread(target=looper.wake)
    thread.start()
    await work.reached(2)
    thread.join()
    await looper.stop()


async def test_a_wake_up_during_the_work_is_kept() -> None:
    rounds = 0
    second = asyncio.Event()

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            looper.wake()
        else:
            second.set()

    looper = Looper("test", work, poll_interval=NEVER)
    looper.start()
    await second.wait()
    await looper.stop()


async def test_stop_lets_the_work_finish() -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> float:
        begun.set()
        await may_end.wait()
        ended.set()
        return 0

    looper = Looper("test", work, poll_interval=NEVER)
    looper.start()
    await begun.wait()
    stopping = asyncio.create_task(looper.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    may_end.set()
    await stopping
    assert ended.is_set()


async def test_an_outage_is_told_once_for_all_loops_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = DatabaseUnavailable("nobody there")
    works = [Work(gone, gone, gone, None) for _ in range(3)]
    loopers = [Looper("poller", work, poll_interval=NEVER) for work in works]
    for looper in loopers:
        looper.start()
    for work, looper in zip(works, loopers, strict=True):
        await work.reached(4)
        await looper.stop()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["waits for the database: nobody there", "the database is back"]


async def test_a_loop_that_stops_waits_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gone = DatabaseUnavailable("nobody there")
    for _ in range(2):
        work = Work(*[gone] * 50)
        looper = Looper("poller", work, poll_interval=NEVER)
        looper.start()
        await work.reached(2)
        await looper.stop()
    assert [record.getMessage() for record in caplog.records] == ["waits for the database: nobody there"] * 2


async def test_any_other_fault_is_logged_with_its_traceback_and_passed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work(KeyError("x"), None)
    looper = Looper("poller", work, poll_interval=NEVER)
    looper.start()
    await work.reached(2)
    await looper.stop()
    [record] = caplog.records
    assert record.exc_info is not None


async def test_stop_cuts_a_backoff_short_and_works_before_start() -> None:
    work = Work(*[KeyError("x")] * 50)
    looper = Looper("test", work, poll_interval=NEVER)
    await looper.stop()
    fresh = Looper("test", work, poll_interval=NEVER)
    fresh.start()
    await work.reached(1)
    await fresh.stop()
    assert work.rounds < 50
