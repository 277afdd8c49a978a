"""The books under load: what the vendor gave away is what the books and the results say, to the last token."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.provider_server import answer
from tests.system import running, sql, started, until

REQUESTS = 2000
WORKERS = 3
PRICES = {"openai/gpt-4o": {"input_price": "2.5", "output_price": "10", "cached_price": "1.25"}}


class Vendor:
    """Answers with usage of its own choosing, fails a third of the time, and keeps its own log."""

    def __init__(self) -> None:
        self.app = web.Application()
        self.app.router.add_post("/v1/chat/completions", self._complete)
        self.calls: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.cost = Decimal(0)
        self._random = random.Random(7)

    async def _complete(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self._random.uniform(0, 0.02))
        status = self._random.choice((200, 200, 200, 200, 429, 503))
        self.calls[str(status)] += 1
        if status != 200:
            return web.json_response({"error": {"message": "not now"}}, status=status)
        prompt, answered = self._random.randint(1, 5000), self._random.randint(1, 900)
        cached, thought = self._random.randint(0, prompt), self._random.randint(0, answered)
        self.tokens.update(prompt=prompt, answered=answered, cached=cached, thought=thought)
        self.cost += (
            Decimal("2.5") * (prompt - cached) + Decimal("1.25") * cached + 10 * answered
        ) / 1_000_000
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": answered,
            "total_tokens": prompt + answered,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": thought},
        }
        return web.json_response(answer() | {"model": "gpt-4o", "usage": usage})


@pytest.mark.soak
async def test_nothing_is_lost_and_nothing_counted_twice(database_url, db):
    vendor = Vendor()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(vendor.app))
        url = str(server.make_url("/v1"))
        settings: dict[str, Any] = {"models": PRICES, "breaker_failures": 1000, "router_retries": 1}
        for _ in range(WORKERS):
            await stack.enter_async_context(
                started(database_url, url, caller=False, concurrency=50, **settings)
            )
        service = await stack.enter_async_context(running(database_url, nexus=False))
        parts = await asyncio.gather(*(_enqueue(service, part) for part in range(20)))
        results = await asyncio.gather(*(handle.result(timeout=120) for part in parts for handle in part))
        assert {result.status for result in results} == {"success"}
        await until(lambda: _no_reservation(db))

    books = await _sum(db, "nexus.attempts", "count(*)", "count(distinct instance_id)")
    stored = await _sum(db, "pgnexus.job_results", "sum(attempts)", "count(*)")
    assert stored[1] == REQUESTS
    assert books[1] == WORKERS
    told = tuple(vendor.tokens[name] for name in ("prompt", "answered", "cached", "thought"))
    assert books[0] == stored[0] == sum(vendor.calls.values()) > REQUESTS
    assert books[2] == stored[2] == (*told, vendor.cost)
    outcomes = {row.outcome: row.calls for row in await _outcomes(db)}
    assert outcomes["success"] == vendor.calls["200"] == REQUESTS
    [asked] = await sql(db, "select cost, calls from nexus_api.costs(null, null, '{}')")
    assert (asked.cost, asked.calls) == (vendor.cost, books[0])
    assert sum(result.cost for result in results) == vendor.cost


async def _enqueue(service: Any, part: int) -> Any:
    """A task of its own among many, some one by one, some together."""
    asked = [
        {
            "complexity": "simple",
            "model": "gpt-4o",
            "messages": f"{part}.{number}",
            "agent_id": f"agent {part}",
        }
        for number in range(REQUESTS // 20)
    ]
    if part % 2:
        return await service.enqueue_many(asked)
    return [handle for one in asked for handle in await service.enqueue_many([one])]


async def _sum(db: Any, table: str, calls: str, others: str) -> tuple[int, int, tuple[Any, ...]]:
    """(calls, others, tokens and cost) of a table of books."""
    names = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost")
    sums = ", ".join(f"sum({name}) as {name}" for name in names)
    [row] = await sql(db, f"select {calls} as calls, {others} as others, {sums} from {table}")
    return row.calls, row.others, tuple(row)[2:]


async def _outcomes(db: Any) -> list[Any]:
    return await sql(db, "select outcome, count(*) as calls from nexus.attempts group by 1")


async def _no_reservation(db: Any) -> bool:
    return not await sql(db, "select 1 as one from nexus.reservations")
