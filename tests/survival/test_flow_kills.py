"""40 runs with every kind of step while something is killed, frozen or taken away: each ends once, and well.

Each test counts by ledger: what the handlers wrote down, what the transactional steps inserted, the rows of the
tasks, the requests, and what lies on the queues.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pgnexus.app import App
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.flow.runs.handle import RunHandle
from tests.survival import flow_ledger as ledger
from tests.survival.processes import Up, opened, restart, up
from tests.system import QUEUES, fast, messages, sql, until

pytestmark = pytest.mark.timeout(240)

RUNS = 40
ANSWER = "an answer"
FLOW = ("--flow", "tests.survival.flow_ledger:flow")
PATIENT = {"PGNEXUS_WORKER_LEASE": "12"}


@pytest.fixture
def env(llmock: Any, server_dir: Path) -> dict[str, str]:
    """The environment of an `up` that is soon given up; its provider takes half a second for each answer."""
    llmock.delay(0.5, times=None)
    llmock.reply(ANSWER, times=None)
    path = server_dir / "ledger"
    path.touch()
    return {
        "PGNEXUS_POLL_INTERVAL": "1",
        "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
        "PGNEXUS_WORKER_LEASE": "2",
        "PGNEXUS_DRAIN_TIMEOUT": "30",
        "PGNEXUS_FLOW_CONCURRENCY": "40",
        "PGNEXUS_DEFAULT_PROVIDER": "openai",
        "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
        "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": llmock.base_url("openai"),
        "PYTHONPATH": os.getcwd(),
        ledger.PATH: str(path),
    }


@asynccontextmanager
async def starting(url: str, **settings: Any) -> AsyncIterator[App]:
    """What starts runs and asks after them, and does none of the work."""
    app = App(fast(url, **settings), caller=False, nexus=False, executor=True)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def begin(app: App, numbers: range = range(RUNS)) -> list[RunHandle]:
    await sql(app.db, ledger.BOOKINGS)
    return list(await asyncio.gather(*(app.executor.start("survivor", number) for number in numbers)))


async def answer(handles: list[RunHandle], first: int = 0) -> None:
    """Send these runs the signals that they wait for."""
    await asyncio.gather(*(one.signal("approved", f"yes {n}") for n, one in enumerate(handles, first)))


async def waiting(db: Database, count: int = RUNS) -> bool:
    """Whether all runs wait for their signals, and each kind of step has something done, and something not."""
    [row] = await sql(
        db,
        """select count(*) filter (where step_slug = 'approved' and deferred_until is not null) as waiting,
                  count(*) filter (where step_slug = 'item' and status = 'completed') as items,
                  count(*) filter (where step_slug = 'booked' and status = 'completed') as booked
           from pgflow.step_tasks""",
    )
    return bool(row.waiting == count and row.items > 100 and row.booked > 4)


async def under_way(db: Database) -> None:
    await until(lambda: waiting(db), within=60)
    [row] = await sql(db, "select count(*) as held from pgflow.step_tasks where status = 'started'")
    assert row.held > RUNS  # more than what waits


async def reconcile(
    app: App, handles: list[RunHandle], env: dict[str, str], *, released: bool = False
) -> None:
    """Every run and every task has ended once, with what it should give; nothing is left anywhere."""
    outputs = await asyncio.gather(*(one.result(timeout=120) for one in handles))
    assert outputs == [ledger.output(number, ANSWER) for number in range(len(handles))]
    db, runs = app.db, len(handles)
    await until(lambda: _nothing_left(db))
    tasks = await sql(
        db,
        "select run_id::text, step_slug, task_index, attempts_count from pgflow.step_tasks"
        " where flow_slug = 'survivor'",
    )
    assert len(tasks) == runs * ledger.TASKS

    begun = ledger.entries(Path(env[ledger.PATH]))
    if not released:  # what is given back has its attempt again
        assert set(begun.values()) == {1}
    last = {(task.run_id, task.step_slug, task.task_index): task.attempts_count for task in tasks}
    assert all(attempt <= last[run, step, index] for run, step, index, attempt in begun)
    noted = {key: attempts for key, attempts in last.items() if key[1] not in ("approved", "asked")}
    assert all((*key, attempts) in begun for key, attempts in noted.items())

    bookings = await sql(db, "select run_id::text, attempt from public.bookings")
    assert {row.run_id: row.attempt for row in bookings} == {
        key[0]: attempts for key, attempts in last.items() if key[1] == "booked"
    }
    assert len(bookings) == runs
    requests = await sql(db, "select status, count(*) as requests from pgnexus.job_results group by 1")
    assert [tuple(row) for row in requests] == [("success", runs)]


async def _nothing_left(db: Database) -> bool:
    """Whether all runs and all in them, the provider calls included, are completed, and the queues are empty."""
    states = await sql(
        db,
        """select status, 0 as tasks, 0 as waits from pgflow.runs
           union select status, remaining_tasks, remaining_deps from pgflow.step_states
           union select status, 0, num_nonnulls(message_id, deferred_until, not_before) from pgflow.step_tasks""",
    )
    queues = [await messages(db, queue) for queue in (*QUEUES, "survivor")]
    return [tuple(row) for row in states] == [("completed", 0, 0)] and not any(queues)


async def attempts(db: Database) -> dict[str, int]:
    """The most attempts that a task of each step has had."""
    rows = await sql(
        db, "select step_slug, max(attempts_count) as most from pgflow.step_tasks group by step_slug"
    )
    return {row.step_slug: row.most for row in rows}


@pytest.mark.soak
async def test_kill_9_of_a_worker_and_signals_while_there_is_none(
    database_url: str, env: dict[str, str]
) -> None:
    """With the lease as it is by default: what a dead worker held is back within 15 seconds."""
    usual = {name: value for name, value in env.items() if "LEASE" not in name and "HEARTBEAT" not in name}
    async with starting(database_url) as app:
        async with up(database_url, *FLOW, **usual) as first:
            handles = await begin(app)
            await under_way(app.db)
            await answer(handles[:20])
            await first.kill()
        lost = await _held(app.db)
        assert lost

        async def back() -> bool:
            held = await _held(app.db)
            return not any(held.get(key) == attempt for key, attempt in lost.items())

        await answer(handles[20:], 20)
        async with up(database_url, *FLOW, **usual):
            await until(back, within=15)
            await reconcile(app, handles, env)
        assert max((await attempts(app.db)).values()) == 2


@pytest.mark.soak
async def test_a_frozen_worker_loses_its_work_and_cannot_finish_it(
    database_url: str, env: dict[str, str]
) -> None:
    flows = (*FLOW, "--flow", "tests.survival.flow_ledger:slow")
    async with starting(database_url) as app, up(database_url, *flows, **env) as frozen:
        handles = await begin(app)
        await under_way(app.db)
        slow = await app.executor.start("slow", "x")
        await until(lambda: _is_held(app.db, slow, 1))
        frozen.freeze()
        lost = await _held(app.db)
        async with up(database_url, *flows, **env):
            await answer(handles)
            await until(lambda: _is_held(app.db, slow, 2))
            frozen.thaw()  # and its first attempt is over at once, while the second is under way
            await until(lambda: _says(frozen, "had been given up"))
            await reconcile(app, handles, env)
            assert await slow.result(timeout=30) == {"wait": 2}
        last = await _last(app.db)
        assert any(last[key] > attempt for key, attempt in lost.items())
        more = await app.executor.start("slow", "y")  # the one that came back works on
        assert await more.result(timeout=30) == {"wait": 1}


async def _is_held(db: Database, handle: RunHandle, attempt: int) -> Any:
    return await sql(
        db,
        "select 1 from pgflow.step_tasks where run_id = %s and status = 'started' and attempts_count = %s",
        handle.run_id,
        attempt,
    )


async def _held(db: Database) -> dict[Any, int]:
    """The tasks that a worker holds, and their attempts."""
    rows = await sql(
        db,
        "select run_id, step_slug, task_index, attempts_count from pgflow.step_tasks"
        " where flow_slug = 'survivor' and status = 'started' and deferred_until is null",
    )
    return {tuple(row[:3]): row.attempts_count for row in rows}


async def _last(db: Database) -> dict[Any, int]:
    """The attempts of all tasks."""
    rows = await sql(db, "select run_id, step_slug, task_index, attempts_count from pgflow.step_tasks")
    return {tuple(row[:3]): row.attempts_count for row in rows}


async def _says(process: Up, words: str) -> bool:
    return any(words in line for line in process.lines)


async def test_terminate_lets_finish_what_runs(database_url: str, env: dict[str, str]) -> None:
    async with starting(database_url) as app:
        async with up(database_url, *FLOW, **env) as first:
            handles = await begin(app)
            await under_way(app.db)
            assert await first.terminate() == 0
        assert not await _held(app.db)
        most = await attempts(app.db)
        assert (most["item"], most["booked"]) == (1, 1)
        await answer(handles)
        async with up(database_url, *FLOW, **env):
            await reconcile(app, handles, env)
        most = await attempts(app.db)
        assert most == dict.fromkeys(most, 1) | {"stubborn": 2}


async def test_terminate_without_time_gives_back_and_counts_no_attempt(
    database_url: str, env: dict[str, str]
) -> None:
    async with starting(database_url) as app:
        async with up(database_url, *FLOW, **env | {"PGNEXUS_DRAIN_TIMEOUT": "0"}) as first:
            handles = await begin(app)
            await under_way(app.db)
            assert await first.terminate() == 0
        assert not await _held(app.db)
        await answer(handles)
        async with up(database_url, *FLOW, **env):
            await reconcile(app, handles, env, released=True)
        most = await attempts(app.db)
        assert most == dict.fromkeys(most, 1) | {"stubborn": 2}


@pytest.mark.soak
async def test_one_of_two_workers_is_killed_again_and_again(database_url: str, env: dict[str, str]) -> None:
    handles: list[RunHandle] = []
    async with starting(database_url) as app, up(database_url, *FLOW, **env):
        for first in range(0, RUNS, 10):  # a task that loses five workers fails: it may be what kills them
            async with up(database_url, *FLOW, **env) as victim:
                new = await begin(app, range(first, first + 10))
                await until(lambda: _two_hold(app.db))
                await victim.kill()
            handles += new
        await until(lambda: waiting(app.db), within=60)
        await answer(handles)
        await reconcile(app, handles, env)


async def _two_hold(db: Database) -> bool:
    rows = await sql(
        db,
        "select 1 from pgflow.step_tasks join pgflow.workers on worker_id = last_worker_id and stopped_at is null"
        " where flow_slug = 'survivor' and status = 'started' and deferred_until is null"
        " and last_heartbeat_at > now() - interval '1 second' group by last_worker_id having count(*) > 5",
    )
    return len(rows) == 2


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped fast"])
async def test_the_database_goes_and_comes_back(
    own_server: EmbeddedServer, env: dict[str, str], how: signal.Signals
) -> None:
    url = own_server.url
    await schema.migrate(url)
    async with starting(url) as app, up(url, *FLOW, **env | PATIENT):
        handles = await begin(app)
        await under_way(app.db)
        await restart(own_server, how)
        async with opened(url):
            await answer(handles)
            await reconcile(app, handles, env)


async def test_who_holds_the_event_loop_past_its_timeout_loses_its_work_to_others(
    database_url: str, env: dict[str, str]
) -> None:
    flow = ("--only", "flows", "--flow", "tests.survival.flow_ledger:blocking")
    impatient = env | {"PGNEXUS_FLOW_BLOCKED_WARNING": "0.2", "PGNEXUS_WORKER_LEASE": "1"}
    async with (
        starting(database_url) as app,
        up(database_url, *flow, **impatient, PGNEXUS_TEST_BLOCKS="1") as stuck,
    ):
        handle = await app.executor.start("blocking", "x")
        await until(lambda: _says(stuck, "has held the event loop"))
        async with up(database_url, *flow, **impatient):
            assert await handle.result(timeout=60) == {"hold": 2, "beside": 2}
        said = "".join(stuck.lines)
        assert f"run {handle.run_id}: step hold[0]: its handler has held" in said
        assert f"run {handle.run_id}: step hold[0]: its handler is past its timeout" in said
