"""Limits the whole way: what is over them waits, and everything is answered."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from aiohttp import web

import pgnexus
from pgnexus.db.database import Database
from tests.nexus.gates import standing
from tests.provider_server import answer, served
from tests.system import running, sql, started, until


class Vendor:
    """Counts how many calls are under way."""

    def __init__(self) -> None:
        self.calls = self.now = self.most = 0

    async def complete(self, _: web.Request) -> web.Response:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02)
        self.now -= 1
        return web.json_response(answer() | {"model": "gpt-4o"})


async def test_work_over_a_limit_waits_and_does_not_fail(database_url: str, db: Database) -> None:
    vendor = Vendor()
    limits = {"openai": {"concurrent_calls": 3}, "agent:*": {"requests_per_minute": 6000}}
    async with (
        served(vendor.complete) as url,
        started(database_url, url, caller=False, limits=limits),
        started(database_url, url, caller=False, limits=limits),
        running(database_url, nexus=False) as service,
    ):
        handles = await service.enqueue_many(
            [{"complexity": "simple", "messages": str(number), "agent_id": "x"} for number in range(120)]
        )
        results = await asyncio.gather(*(handle.result(timeout=90) for handle in handles))
        assert {result.status for result in results} == {"success"}
        assert {result.attempts for result in results} == {1}
        assert vendor.calls == 120
        assert vendor.most <= 3
        await until(lambda: _nothing_held(db, "openai", "concurrent_calls"))


async def test_a_budget_ends_requests_at_once_and_is_what_the_books_say(
    database_url: str, db: Database
) -> None:
    vendor = Vendor()
    settings = {
        "budgets": {"agent:x": {"usd_per_month": "0.001"}},
        "models": {"openai/gpt-4o": {"input_price": 10, "output_price": 10, "cached_price": 10}},
    }
    async with served(vendor.complete) as url, running(database_url, url, **settings) as service:
        for _ in range(2):
            await service.call("simple", "hi", model="gpt-4o", agent_id="x", max_tokens=50)
        with pytest.raises(
            pgnexus.QuotaExceeded, match=r"agent:x has usd_per_month of 0\.001: 0\.00024 is spent"
        ):
            await service.call("simple", "hi", model="gpt-4o", agent_id="x", max_tokens=80)
        await service.call("simple", "hi", model="gpt-4o", agent_id="y", max_tokens=80)
        assert vendor.calls == 3
        [books] = await sql(db, "select sum(cost) as cost from nexus.attempts where agent_id = 'x'")
        row = await standing(db, "agent:x", "usd_per_month")
        assert row.spent == books.cost == Decimal("0.00024")
        await until(lambda: _nothing_held(db, "agent:x", "usd_per_month"))


async def _nothing_held(db: Database, scope: str, kind: str) -> bool:
    row = await standing(db, scope, kind)
    return bool(row.held == 0)
