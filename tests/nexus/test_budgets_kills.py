"""A budget while workers are killed: what the vendor charges, what the books say, and what the budget counts."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import pytest
from aiohttp import web

from pgnexus.caller.handle import RequestHandle
from pgnexus.db.database import Database
from pgnexus.errors import RequestError
from tests.nexus.gates import standing
from tests.provider_server import answer, served
from tests.survival.processes import up
from tests.system import running, sql, until

BUDGET = 4000
REQUESTS = 300  # twice as many as can be paid for
MOST = 50  # tokens of an answer, a dollar each
ENVIRONMENT = {
    "PGNEXUS_POLL_INTERVAL": "1",
    "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
    "PGNEXUS_WORKER_LEASE": "1.5",
    "PGNEXUS_DEFAULT_PROVIDER": "openai",
    "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
    "PGNEXUS_CONCURRENCY": "10",
    "PGNEXUS_BUDGETS": json.dumps({"agent:x": {"usd_per_day": BUDGET}}),
    "PGNEXUS_LIMITS": json.dumps({"openai": {"concurrent_calls": 15}}),
}


class Vendor:
    """Takes its time, and a dollar for each token it answers with; keeps its own account."""

    def __init__(self) -> None:
        self.earned = 0
        self.calls = 0
        self.at_once = self.most_at_once = 0
        self._random = random.Random(11)

    async def complete(self, _: web.Request) -> web.Response:
        tokens = self._random.randint(1, MOST)
        self.calls += 1
        self.earned += tokens  # also when nobody is there any more to hear the answer
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self._random.uniform(0.05, 0.3))
        finally:
            self.at_once -= 1
        usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
        return web.json_response(answer() | {"model": "gpt-4o", "usage": usage})


@pytest.mark.soak
async def test_killed_workers_do_not_overspend(database_url: str, db: Database) -> None:
    vendor = Vendor()
    async with served(vendor.complete) as url, running(database_url, nexus=False) as service:
        prices = {"openai/gpt-4o": {"input_price": 0, "output_price": 1_000_000, "cached_price": 0}}
        environment = ENVIRONMENT | {
            "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": url,
            "PGNEXUS_MODELS": json.dumps(prices),
        }
        handles = await service.enqueue_many(
            [
                {"complexity": "simple", "messages": f"question {number}", "model": "gpt-4o", "agent_id": "x",
                 "max_tokens": MOST, "priority": ("interactive", "standard", "batch")[number % 3]}
                for number in range(REQUESTS)
            ]
        )  # fmt: skip
        for kills in range(1, 4):
            async with up(database_url, "--only", "nexus", **environment) as worker:
                await until(lambda kills=kills: _called(vendor, 25 * kills), within=30)
                await worker.kill()
        async with (
            up(database_url, "--only", "nexus", **environment),
            up(database_url, "--only", "nexus", **environment),
        ):
            async with asyncio.timeout(100):
                types = Counter(await asyncio.gather(*(_ended(handle) for handle in handles)))
                await until(lambda: _nothing_held(db))

    assert set(types) == {"success", "quota_exceeded"}
    assert vendor.most_at_once <= 15 + 10  # of a killed worker's calls the vendor hears a little later
    [books] = await sql(
        db,
        """select sum(cost) as cost, count(*) filter (where outcome = 'unknown') as unknown, count(*) as calls
           from nexus.attempts""",
    )
    row = await standing(db, "agent:x", "usd_per_day")
    assert books.unknown > 0
    assert books.calls >= vendor.calls  # one may have been killed just before it called
    assert vendor.earned <= books.cost == row.spent <= BUDGET
    assert row.spent > BUDGET - 10 * MOST


async def _ended(handle: RequestHandle) -> str:
    """How a request ended: success, or the type of its error."""
    try:
        return (await handle.result(timeout=None)).status
    except RequestError as error:
        return error.type


async def _called(vendor: Vendor, calls: int) -> bool:
    return vendor.calls >= calls


async def _nothing_held(db: Database) -> Any:
    row = await standing(db, "agent:x", "usd_per_day")
    return row is not None and row.held == 0
