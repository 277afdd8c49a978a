"""Budgets: money and tokens by day and month, reserved before each call, exact whatever races and dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.nexus.limits.gate import Gate
from pgnexus.nexus.limits.permit import OverBudget, OverLimit, Permit
from tests.nexus.gates import ask, book, bury, gate, passed, refused, register, standing
from tests.system import sql

USD = "usd_per_day"


@pytest.fixture
async def side(nexus_url: str) -> AsyncIterator[Database]:
    """The database as a worker sees it."""
    database = await Database.open(nexus_url, pool_size=20)
    yield database
    await database.close()


def budget(amount: Any, kind: str = USD, scope: str = "agent:x") -> dict[str, Any]:
    return {"budgets": {scope: {kind: amount}}}


async def test_over_budget_is_said_at_once_with_the_figures(side: Database) -> None:
    instance = await register(side)
    async with gate(side, instance, **budget("0.05")) as limited:
        first = await passed(limited, agent="x", cost="0.03")
        [charge] = first.charges
        assert (charge.scope, charge.kind, charge.reserved) == ("agent:x", USD, Decimal("0.03"))
        over = await refused(limited, patience=30, agent="x", cost="0.03")
        assert isinstance(over, OverBudget)
        assert over.scope == "agent:x"
        assert over.message == (
            "agent:x has usd_per_day of 0.05: 0 is spent, 0.03 is set aside for calls under way, "
            "and this call may take 0.03"
        )
        await passed(limited, agent="y", cost="100")
        # it took less than was set aside
        await book(side, instance, *first.settle(10, Decimal("0.015")))
        await passed(limited, agent="x", cost="0.03")
        assert isinstance(await refused(limited, agent="x", cost="0.03"), OverBudget)
    row = await standing(side, "agent:x", USD)
    assert (row.limit, row.spent, row.held) == (Decimal("0.05"), Decimal("0.015"), Decimal("0.03"))


async def test_tokens_and_months_and_keys(side: Database) -> None:
    instance = await register(side)
    rows = {
        "key:OPENAI_API_KEY": {"tokens_per_month": 1000, "usd_per_month": 5},
        "openai": {"tokens_per_day": 900},
    }
    async with gate(side, instance, budgets=rows) as limited:
        permit = await passed(limited, tokens=600, cost="1")
        assert sorted((c.scope, c.kind, c.reserved) for c in permit.charges) == [
            ("key:OPENAI_API_KEY", "tokens_per_month", 600),
            ("key:OPENAI_API_KEY", "usd_per_month", 1),
            ("openai", "tokens_per_day", 600),
        ]
        assert {c.period[-2:] for c in permit.charges if c.kind != "tokens_per_day"} == {"01"}
        over = await refused(limited, tokens=350)
        assert isinstance(over, OverBudget)
        assert over.scope == "openai"
        await book(side, instance, *permit.settle(500, Decimal("0.5")))
        await passed(limited, tokens=400, cost="4.5")
        assert isinstance(await refused(limited, tokens=0, cost="0.01"), OverBudget)
        await passed(limited, key="OTHER", provider="other", tokens=10**9)


async def test_what_has_no_price_cannot_be_held_to_a_budget_in_money(side: Database) -> None:
    async with gate(side, **budget(5)) as limited:
        over = await refused(limited, agent="x", cost=None)
        assert isinstance(over, OverBudget)
        assert 'set models."openai/gpt-4o".input_price' in over.message
    async with gate(side, **budget(500, "tokens_per_day")) as limited:
        await passed(limited, agent="x", cost=None)


async def test_a_budget_of_nothing_lets_only_free_calls_pass(side: Database) -> None:
    async with gate(side, **budget(0)) as limited:
        assert isinstance(await refused(limited, agent="x", cost="0.000001"), OverBudget)
        await passed(limited, agent="x", cost="0")


async def test_refusals_and_cancelled_calls_cost_nothing(side: Database) -> None:
    instance = await register(side)
    async with gate(side, instance, **budget("0.01")) as limited:
        permit = await passed(limited, agent="x", cost="0.01")
        permit.cancel()
        assert permit.settle(10, Decimal(1)) == ()
        permit = await passed(limited, agent="x", cost="0.01")
        await book(side, instance, *permit.settle(0, None))
        permit = await passed(limited, agent="x", cost="0.01")
        [unknown] = permit.settle(None, None)
        assert unknown.actual == Decimal("0.01")


async def test_a_new_day_is_a_new_budget(side: Database) -> None:
    instance = await register(side)
    async with gate(side, instance, **budget("0.02")) as limited:
        yesterday = await passed(limited, agent="x", cost="0.02")
        assert isinstance(await refused(limited, agent="x"), OverBudget)
        await sql(side, "update nexus.holdings set period = period - 1")
        await passed(limited, agent="x", cost="0.02")
        [charge] = yesterday.settle(10, Decimal("0.01"))
        assert charge.period == yesterday.charges[0].period


async def test_what_lies_idle_with_another_worker_is_waited_for(side: Database) -> None:
    async with gate(side, **budget("1")) as one, gate(side, **budget("1")) as two:
        (await passed(one, agent="x", cost="0.9")).cancel()  # 0.9 lies idle there
        await sql(side, "update nexus.holdings set idle = 0.9")
        over = await refused(two, patience=0, agent="x", cost="0.9")
        assert isinstance(over, OverLimit)
        await passed(two, patience=30, agent="x", cost="0.9")


async def test_a_dead_workers_calls_stay_in_the_budget(side: Database) -> None:
    dead = await register(side)
    async with gate(side, dead, **budget("1")) as one, gate(side, **budget("1")) as two:
        lost = await passed(one, agent="x", cost="0.7")
        await sql(
            side, "update pgflow.workers set last_heartbeat_at = '2000-01-01' where worker_id = %s", dead
        )
        assert isinstance(await refused(two, agent="x", cost="0.7"), OverBudget)
        await book(side, dead, *lost.settle(None, None))
        await bury(side, dead)
        row = await standing(side, "agent:x", USD)
        assert (row.spent, row.held) == (Decimal("0.7"), 0)
        assert isinstance(await refused(two, agent="x", cost="0.7"), OverBudget)
        await passed(two, agent="x", cost="0.3")


async def test_a_lease_without_an_answer_is_cleared_up(
    side: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks when the lease is committed, and its answer is lost."""
    async with gate(side, **budget("1")) as limited:
        query, broken = side.query, []

        async def breaks(name: str, params: Any = None) -> list[Any]:
            rows = await query(name, params)
            if name == "lease_limits" and len(broken) < 2:
                broken.append(rows)
                raise DatabaseUnavailable("cut off")
            return rows

        monkeypatch.setattr(side, "query", breaks)
        permit = await passed(limited, patience=30, agent="x", cost="0.6")
        assert len(broken) == 2
        permit.cancel()
        await passed(limited, patience=30, agent="x", cost="1")


class Ledger:
    """What all calls have taken, and what those under way may take, next to the budget."""

    def __init__(self, amount: Decimal) -> None:
        self.amount = amount
        self.spent = Decimal(0)
        self.held = Decimal(0)
        self.calls = 0
        self.lost = 0

    def hold(self, permit: Permit) -> None:
        self.calls += 1
        self.held += permit.charges[0].reserved
        assert self.spent + self.held <= self.amount

    def pay(self, reserved: Decimal, actual: Decimal) -> None:
        self.held -= reserved
        self.spent += actual
        assert self.spent + self.held <= self.amount


async def works(
    db: Database, ledger: Ledger, instance: UUID, limited: Gate, dies: bool, chance: random.Random
) -> None:
    """One worker that calls until it is told that the budget is spent; or dies, and its calls are booked as unknown."""
    lost: list[Permit] = []
    ends_after = chance.randrange(5, 40)

    async def one_after_another() -> None:
        while True:
            cost = Decimal(chance.randrange(1, 400)) / 1000
            answer = await limited.admit(ask(agent="x", cost=str(cost)), patience=5)
            if isinstance(answer, OverBudget):
                return
            if isinstance(answer, OverLimit):
                continue
            ledger.hold(answer)
            await asyncio.sleep(0)
            if dies and ledger.calls % 50 > ends_after:
                lost.append(answer)
                return
            actual = cost * chance.randrange(0, 11) / 10
            charges = answer.settle(10, actual)
            await book(db, instance, *charges)
            ledger.pay(charges[0].reserved, actual)

    await asyncio.gather(*(one_after_another() for _ in range(4)))
    ledger.lost += len(lost)
    if lost:
        charges = [charge for permit in lost for charge in permit.settle(None, None)]
        await book(db, instance, *charges)
        for charge in charges:
            ledger.pay(charge.reserved, charge.reserved)
        limited.forget()
        await bury(db, instance)


async def test_fifty_workers_never_overspend(side: Database) -> None:
    chance, ledger = random.Random(4), Ledger(Decimal(150))
    settings = budget(150)
    workers = []
    for number in range(50):
        instance = await register(side)
        opened = gate(side, instance, **settings)
        workers.append((opened, instance, await opened.__aenter__(), number % 5 == 0))
    async with asyncio.timeout(100):
        await asyncio.gather(
            *(works(side, ledger, instance, limited, dies, chance) for _, instance, limited, dies in workers)
        )
    for opened, *_ in workers:
        await opened.__aexit__(None, None, None)
    row = await standing(side, "agent:x", USD)
    assert row.spent == ledger.spent
    assert row.held == ledger.held == 0
    assert ledger.calls > 700
    assert ledger.lost > 10
    assert ledger.spent > 149  # and it is used up
