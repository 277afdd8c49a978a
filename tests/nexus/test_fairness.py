"""Fair shares: an agent's flood keeps no other agent waiting. Judged by the order of calls, not by the clock."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from aiohttp import web
from provider_server import answer, served
from system import running, sql, until

from pgnexus.db.database import Database


class Vendor:
    """Answers after a while, and notes whose calls came in which order."""

    def __init__(self, seconds: float) -> None:
        self.calls: list[str] = []
        self.url = ""
        self._seconds = seconds

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(body["messages"][0]["content"])
        await asyncio.sleep(self._seconds)
        return web.json_response(answer("ok"))

    def between(self, agent: str, other: str) -> int:
        """Calls of ``agent`` between the first and the last one of ``other``."""
        first = self.calls.index(other)
        last = len(self.calls) - 1 - self.calls[::-1].index(other)
        return Counter(self.calls[first:last])[agent]


@pytest.fixture
async def vendor():
    found = Vendor(0.05)
    async with served(found.take) as found.url:
        yield found


async def send(service, agent: str | None, many: int, **fields) -> list:
    named = {} if agent is None else {"agent_id": agent}
    return await service.enqueue_many(
        [{"messages": agent or "nobody", **named, **fields} for _ in range(many)]
    )


async def everything(handles) -> None:
    results = await asyncio.gather(*(handle.result(timeout=120) for handle in handles))
    assert all(result.ok for result in results)


async def parked(db: Database, scope: str) -> int:
    [row] = await sql(db, "select count(*) from nexus.parked where scope = %s", scope)
    return int(row.count)


@pytest.mark.parametrize("priority", ["standard", "interactive"])
async def test_a_flood_leaves_another_agent_its_share_of_the_slots(database_url, vendor, priority):
    async with running(database_url, vendor.url, concurrency=20) as service:
        flood = await send(service, "A", 1000, priority=priority)
        await until(lambda: reached(vendor, 100))
        before = len(vendor.calls)
        few = await send(service, "B", 20, priority=priority)
        await everything(few)
        early = Counter(vendor.calls[before : len(vendor.calls) - vendor.calls[::-1].index("B")])
        between = vendor.between("A", "B")
        print(f"{priority}: until B's last of 20 began, {early['A']} of A's 1,000 did; {between} between B's")
        assert early["B"] == 20
        # first a look notices B (0.25 s are five rounds of 20 slots), then both take turns
        assert early["A"] < 250
        assert between <= 120  # of 1,000; looks and rounds of slots count, whatever the machine is at
        await everything(flood)


async def test_a_flood_of_one_agent_alone_parks_nothing(database_url, db, vendor):
    await sql(db, "create table parkings as select run_id from nexus.parked")
    await sql(
        db,
        """create function note() returns trigger language plpgsql as
           $$begin insert into public.parkings values (new.run_id); return new; end$$;
           create trigger note after insert on nexus.parked for each row execute function note()""",
    )
    async with running(database_url, vendor.url, concurrency=20) as service:
        await everything(await send(service, None, 300) + await send(service, None, 300))
    assert await sql(db, "select * from parkings") == []


async def test_many_agents_that_crowd_nobody_out_park_nothing(database_url, db, vendor):
    async with running(database_url, vendor.url, concurrency=10) as service:
        handles = await service.enqueue_many(
            [{"messages": f"{n}", "agent_id": f"agent {n % 50}"} for n in range(300)]
        )
        await everything(handles)
        assert await parked(db, "share") == 0


async def reached(vendor: Vendor, many: int) -> bool:
    return len(vendor.calls) >= many


async def test_under_a_limit_agents_have_equal_parts(database_url, vendor):
    limits = {"openai": {"concurrent_calls": 4}}
    async with running(database_url, vendor.url, concurrency=50, limits=limits) as service:
        flood = await send(service, "A", 400)
        await until(lambda: reached(vendor, 20))
        await everything(await send(service, "B", 60))
        assert_equal_parts(vendor)
        await everything(flood)


async def test_those_who_are_parked_for_a_limit_have_equal_parts(database_url, db, vendor):
    limits = {"openai": {"concurrent_calls": 1}}
    async with running(database_url, vendor.url, concurrency=100, limits=limits) as service:
        flood = await send(service, "A", 300)
        await until(lambda: parked(db, "openai"))
        few = await send(service, "B", 40)
        await until(lambda: parked(db, "openai"))
        await everything(few)
        assert_equal_parts(vendor)
        await sql(db, "select pgnexus.cancel(%s)", [handle.request_id for handle in flood])


def assert_equal_parts(vendor: Vendor) -> None:
    last = len(vendor.calls) - 1 - vendor.calls[::-1].index("B")
    both = Counter(vendor.calls[vendor.calls.index("B") : last + 1])
    print(f"under a limit: {dict(both)} from B's first call to its last")
    assert both["A"] <= 1.5 * both["B"]
