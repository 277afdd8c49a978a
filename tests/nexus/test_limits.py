"""Limits: what passes, what waits, in which order, and what all workers together do."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from pgnexus.db.database import Database
from pgnexus.nexus.limits.blocks import Block
from pgnexus.nexus.limits.gate import Gate
from pgnexus.nexus.limits.permit import UNLIMITED, OverBudget, OverLimit, Permit
from tests.conftest import Server, database_name
from tests.nexus.gates import ask, book, bury, gate, passed, refused, register, standing
from tests.system import sql, until

RATE = "requests_per_minute"
TOKENS = "tokens_per_minute"
AT_ONCE = "concurrent_calls"


@pytest.fixture
async def side(nexus_url: str) -> AsyncIterator[Database]:
    """The database as a worker sees it."""
    database = await Database.open(nexus_url)
    yield database
    await database.close()


async def refill(db: Database, seconds: float) -> None:
    """Let that much time pass for all token buckets."""
    await sql(db, "update nexus.buckets set refilled_at = refilled_at - make_interval(secs => %s)", seconds)


async def test_without_limits_everything_passes_at_once(side: Database) -> None:
    async with gate(side) as free:
        assert not free.limited
        assert await free.admit(ask(), patience=0) is UNLIMITED
        assert UNLIMITED.settle(100, Decimal(1)) == ()
        assert await free.room("openai", 7) == (7, 0.0)


async def test_what_no_row_names_is_not_limited(side: Database) -> None:
    async with gate(side, limits={"anthropic": {RATE: 1}, "agent:x": {RATE: 1}}) as limited:
        assert limited.limited
        assert await limited.admit(ask(agent="y"), patience=0) is UNLIMITED


async def test_a_burst_is_a_tenth_of_the_minute_and_refills_by_the_databases_clock(side: Database) -> None:
    async with gate(side, limits={"openai": {RATE: 3.6}}) as slow:  # 3.6 a minute: one, then none
        (await passed(slow)).settle(10, None)
        over = await refused(slow)
        assert isinstance(over, OverLimit)
        assert over.scope == "openai"
        assert over.retry_in is not None
        assert 1 < over.retry_in < 60 / 3.6 + 1
        assert slow.why("openai", "gpt-4o") == "openai is over its limit of 3.6 requests_per_minute"
        assert slow.why("anthropic", "claude") is None


async def test_a_keys_limit_is_told_of_its_models(side: Database) -> None:
    async with gate(side, limits={"key:OPENAI_API_KEY": {RATE: 3.6}}) as slow:
        (await passed(slow)).settle(10, None)
        assert isinstance(await refused(slow), OverLimit)
        told = slow.why("openai", "gpt-4o", "OPENAI_API_KEY")
        assert told == "key:OPENAI_API_KEY is over its limit of 3.6 requests_per_minute"
        assert slow.why("openai", "gpt-4o") is None


async def test_the_bucket_is_one_for_all_workers(side: Database) -> None:
    settings = {"limits": {"openai": {RATE: 100}}}
    async with gate(side, **settings) as one, gate(side, **settings) as two:
        answers = await asyncio.gather(
            *(each.admit(ask(), patience=0) for each in (one, two) for _ in range(10))
        )
    assert sum(isinstance(answer, Permit) for answer in answers) == 10


async def test_time_fills_the_bucket(side: Database) -> None:
    async with gate(side, limits={"openai": {RATE: 60}}) as one:
        for _ in range(6):
            await passed(one, patience=0)
        await refused(one)
        await refill(side, 3)
        async with gate(side, limits={"openai": {RATE: 60}}) as two:
            for _ in range(3):
                await passed(two, patience=0)
            await refused(two)


async def test_tokens_that_were_not_used_come_back(side: Database) -> None:
    async with gate(side, limits={"openai": {TOKENS: 3600}}) as limited:  # 360 at once, 60 a second
        first = await passed(limited, tokens=300)
        first.settle(10, None)
        second = await passed(limited, patience=0, tokens=300)
        second.settle(5000, None)  # more than was set aside: it is owed
        await refused(limited, tokens=10)


async def test_a_call_larger_than_the_bucket_passes(side: Database) -> None:
    async with gate(side, limits={"openai": {TOKENS: 60}}) as limited:  # 6 at once, 1 a second
        (await passed(limited, patience=0, tokens=500)).settle(500, None)
        over = await refused(limited, tokens=1)
        assert isinstance(over, OverLimit)
    row = await standing(side, "openai", TOKENS)
    assert -495 < row.level < -480
    assert row.limit == 60


async def test_calls_at_once(side: Database) -> None:
    async with gate(side, limits={"openai/gpt-4o": {AT_ONCE: 2}}) as limited:
        first, _ = await passed(limited), await passed(limited)
        waiting = asyncio.create_task(passed(limited))
        over = await refused(limited)
        assert isinstance(over, OverLimit)
        assert over.scope == "openai/gpt-4o"
        assert await limited.admit(ask(model="gpt-4o-mini"), patience=0) is UNLIMITED
        first.settle(10, None)
        assert first.settle(10, None) == ()  # has no further effect
        await waiting
        await refused(limited)


async def test_a_dead_workers_calls_do_not_count(side: Database) -> None:
    settings = {"limits": {"openai": {AT_ONCE: 3}}}
    dead = await register(side)
    async with gate(side, dead, **settings) as one, gate(side, **settings) as two:
        for _ in range(3):
            await passed(one)
        waiting = asyncio.create_task(passed(two))
        await refused(two)
        await sql(
            side,
            "update pgflow.workers set last_heartbeat_at = now() - interval '1 day' where worker_id = %s",
            dead,
        )
        await waiting
        await refused(one, model="other")


async def test_a_worker_that_was_given_up_forgets(side: Database) -> None:
    settings = {"limits": {"openai": {AT_ONCE: 2}}}
    instance = await register(side)
    async with gate(side, instance, **settings) as limited:
        old = await passed(limited)
        await passed(limited)
        await bury(side, instance)
        limited.forget()
        await sql(side, "update pgflow.workers set stopped_at = null where worker_id = %s", instance)
        await passed(limited)
        old.settle(1, None)  # its place was another's already
        await passed(limited)
        await refused(limited)


async def test_idle_places_go_to_other_workers(side: Database) -> None:
    settings = {"limits": {"openai": {AT_ONCE: 4}}}
    async with gate(side, **settings) as one, gate(side, **settings) as two:
        for permit in [await passed(one) for _ in range(4)]:
            permit.settle(1, None)
        permits = [await passed(two) for _ in range(4)]
        assert len(permits) == 4
        await refused(one)


async def test_a_busy_worker_makes_way_for_another(side: Database) -> None:
    """One that has all the places, and calls enough to keep them, hands over the other's share."""
    settings = {"limits": {"openai": {AT_ONCE: 2}}}
    async with gate(side, **settings) as busy, gate(side, **settings) as late:
        ended = asyncio.Event()

        async def calls() -> None:
            while not ended.is_set():
                permit = await passed(busy, patience=30)
                await asyncio.sleep(0.01)
                permit.settle(1, None)

        flood = [asyncio.create_task(calls()) for _ in range(8)]
        await until(lambda: standing(side, "openai", AT_ONCE))
        await passed(late, patience=30)
        ended.set()
        await asyncio.gather(*flood)


async def test_fewer_places_than_workers_go_round(side: Database) -> None:
    settings = {"limits": {"openai": {AT_ONCE: 1}}}
    async with gate(side, **settings) as one, gate(side, **settings) as two, gate(side, **settings) as three:
        served: list[Gate] = []

        async def calls(each: Gate) -> None:
            while len(set(served)) < 3:
                permit = await passed(each, patience=30)
                served.append(each)
                permit.settle(1, None)
                await asyncio.sleep(0)

        await asyncio.gather(*(calls(each) for each in (one, two, three)))


async def test_interactive_before_standard_before_batch_and_agents_alternate(side: Database) -> None:
    async with gate(side, limits={"openai": {AT_ONCE: 1}}) as limited:
        first = await passed(limited)
        order: list[str] = []

        async def call(name: str, **of_ask: str) -> None:
            permit = await passed(limited, patience=30, **of_ask)
            order.append(name)
            permit.settle(1, None)

        calls = [
            asyncio.create_task(call(name, agent=agent, priority=priority))
            for name, agent, priority in [
                ("b1", "a", "batch"), ("a1", "a", "standard"), ("a2", "a", "standard"), ("a3", "a", "standard"),
                ("b2", "b", "batch"), ("b3", "b", "standard"), ("i1", "c", "interactive"),
            ]
        ]  # fmt: skip
        await asyncio.sleep(0)
        first.settle(1, None)
        await asyncio.gather(*calls)
    assert order == ["i1", "a1", "b3", "a2", "a3", "b1", "b2"]


async def test_who_needs_much_is_not_overtaken(side: Database) -> None:
    async with gate(side, limits={"openai": {TOKENS: 6000}}) as limited:  # 600 at once
        await passed(limited, tokens=650)
        large = asyncio.create_task(passed(limited, patience=30, tokens=500))
        await asyncio.sleep(0)
        small = asyncio.create_task(passed(limited, patience=30, tokens=1))
        done, _ = await asyncio.wait([large, small], return_when=asyncio.FIRST_COMPLETED)
        assert large in done


async def test_a_waiter_that_leaves_gives_everything_back(side: Database) -> None:
    async with gate(side, limits={"openai": {AT_ONCE: 1}}) as limited:
        first = await passed(limited)
        leaving = asyncio.create_task(passed(limited, patience=30))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        at_the_last_moment = asyncio.create_task(passed(limited, patience=30))
        await asyncio.sleep(0)
        first.settle(1, None)
        await asyncio.sleep(0)  # now the place is its own, and it does not know yet
        at_the_last_moment.cancel()
        await asyncio.wait([at_the_last_moment])
        assert at_the_last_moment.cancelled()
        await passed(limited)


async def test_agents_have_rows_of_their_own_or_the_common_one(side: Database) -> None:
    async with gate(side, limits={"agent:*": {AT_ONCE: 1}, "agent:big": {AT_ONCE: 2}}) as limited:
        await passed(limited, agent="x")
        await passed(limited, agent="y")
        over = await refused(limited, agent="x")
        assert over.scope == "agent:x"
        await passed(limited, agent="big")
        await passed(limited, agent="big")
        await refused(limited, agent="big")
        assert await limited.admit(ask(agent=None), patience=0) is UNLIMITED


async def test_an_agents_own_limits_leave_it_the_common_budget(side: Database) -> None:
    rows = {"limits": {"agent:big": {AT_ONCE: 2}}, "budgets": {"agent:*": {"tokens_per_day": 100}}}
    async with gate(side, **rows) as limited:
        assert [charge.scope for charge in (await passed(limited, agent="big", tokens=60)).charges] == [
            "agent:big"
        ]
        assert isinstance(await refused(limited, agent="big", tokens=60), OverBudget)
        await passed(limited, agent="other", tokens=60)


async def test_agents_that_are_gone_leave_nothing_in_memory(side: Database) -> None:
    rows = {
        "limits": {"agent:*": {TOKENS: 60_000, AT_ONCE: 2}},
        "budgets": {"agent:*": {"tokens_per_day": 100}},
    }
    async with gate(side, **rows) as limited:
        for number in range(30):
            (await passed(limited, agent=f"agent {number}", tokens=100)).settle(100, None)
        assert _blocks() >= 90
        await until(_no_block)


def _blocks() -> int:
    gc.collect()  # those of other tests
    return sum(type(thing) is Block for thing in gc.get_objects())


async def _no_block() -> bool:
    return _blocks() == 0


async def test_what_is_long_past_is_pruned(side: Database) -> None:
    instance = await register(side)
    rows = {"limits": {"openai": {RATE: 60, AT_ONCE: 2}}, "budgets": {"openai": {"tokens_per_day": 1000}}}
    async with gate(side, instance, **rows) as limited:
        await book(side, instance, *(await passed(limited)).settle(50, None))
        (await passed(limited)).cancel()
    await side.query("prune_limits")
    assert await _rows(side) == (1, 2, 1)
    await sql(side, "update nexus.buckets set refilled_at = refilled_at - interval '2 days'")
    await sql(side, "update nexus.holdings set told_at = told_at - interval '2 days'")
    await side.query("prune_limits")
    assert await _rows(side) == (0, 1, 1)  # what is spent this month stays, and what belongs to it
    await sql(side, "update nexus.holdings set period = period - 200")
    await sql(side, "update nexus.charged set period = period - 200")
    await side.query("prune_limits")
    assert await _rows(side) == (0, 0, 0)


async def _rows(db: Database) -> tuple[int, ...]:
    [row] = await sql(
        db,
        """select (select count(*) from nexus.buckets) as buckets, (select count(*) from nexus.holdings) as holdings,
                  (select count(*) from nexus.charged) as charged""",
    )
    return tuple(row)


async def test_room_for_parked_requests(side: Database) -> None:
    async with gate(side, limits={"openai": {RATE: 100, AT_ONCE: 4, TOKENS: 1_000_000}}) as limited:
        assert (await limited.room("openai", 3))[0] == 3
        assert (await limited.room("openai", 3))[0] == 1  # three are on their way
        for _ in range(4):
            await passed(limited, patience=0)
        assert (await limited.room("openai", 3))[0] == 0
        found, again_in = await limited.room("openai", 3)
        assert found == 0
        assert again_in > 0
        assert await limited.room("nobody", 5) == (5, 0.0)


async def test_a_database_that_is_away_lets_nothing_pass_and_fails_nothing(
    side: Database, server: Server, database_url: str
) -> None:
    name = database_name(database_url)
    async with gate(side, limits={"openai": {AT_ONCE: 50}}) as limited:
        permit = await passed(limited)
        server.execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        limited.forget()
        over = await refused(limited)
        assert isinstance(over, OverLimit)
        assert over.retry_in is not None
        waiting = asyncio.create_task(passed(limited, patience=30))
        server.execute("ALTER DATABASE {} ALLOW_CONNECTIONS true", name)
        (await waiting).settle(1, None)
        permit.settle(1, None)
    assert (await standing(side, "openai", AT_ONCE)).held == 0


async def test_what_is_left_goes_back_at_the_end(side: Database) -> None:
    async with gate(side, limits={"openai": {RATE: 6000, AT_ONCE: 50}}) as limited:
        permits = [await passed(limited) for _ in range(20)]
        for permit in permits:
            permit.settle(1, None)
    rate, at_once = await standing(side, "openai", RATE), await standing(side, "openai", AT_ONCE)
    assert rate.level >= 580
    assert at_once.held == 0


async def test_an_idle_worker_holds_nothing_and_is_silent(
    side: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "limits": {"openai": {RATE: 60_000, AT_ONCE: 500}},
        "budgets": {"agent:x": {"usd_per_day": 1000}},
    }
    async with gate(side, **settings) as limited:
        for permit in [await passed(limited, agent="x") for _ in range(50)]:
            permit.cancel()
        await until(lambda: _all_is_back(side))
        query, asked = side.query, []

        async def counted(name: str, params: Any = None) -> list[Any]:
            asked.append(name)
            return await query(name, params)

        monkeypatch.setattr(side, "query", counted)
        (await passed(limited, agent="x")).cancel()
        await until(lambda: _all_is_back(side))
        assert 1 <= len(asked) < 10


async def _all_is_back(db: Database) -> bool:
    [row] = await sql(db, "select sum(leased) as leased, sum(waiting) as waiting from nexus.holdings")
    return row.leased == 0 and row.waiting == 0
