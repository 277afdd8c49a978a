"""How the candidates did of late comes from the books of all workers, and orders a route."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from system import sql, until

from pgnexus.db.database import Database
from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.nexus import standings
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.selection import Candidate, Standing, Wanted
from pgnexus.nexus.standings import Standings, read_standings
from pgnexus.providers import build_providers
from pgnexus.settings import Settings

HOUSE = {"house": {"base_url": "http://house/v1"}}


def router(order: str) -> LLMRouter:
    routes = {"simple": {"models": ["house/slow", "house/fast", "house/new"], "order": order}}
    settings = Settings(providers=HOUSE, routes=routes)
    return LLMRouter(settings, build_providers(settings, {}))


async def called(db: Database, model: str, outcome: str, ms: int, ago: float = 60.0) -> None:
    await sql(
        db,
        "insert into nexus.attempts (request_id, attempt, call, instance_id, provider, model, outcome, started_at,"
        " duration_ms) values (%s, 1, 1, %s, 'house', %s, %s, now() - %s, %s)",
        *(new_request_id(), new_request_id(), model, outcome, timedelta(seconds=ago), ms),
    )


def simple(exploring: bool = False) -> LLMRequest:
    """A request that goes by what is known, or one of the few that find out."""
    request = LLMRequest(request_id=new_request_id(), messages=[{"role": "user", "content": "Hi"}])
    while (request.request_id.int % 50 == 0) is not exploring:
        request.request_id = new_request_id()
    return request.model_copy(update={"complexity": "simple"})


async def known(db: Database, here: LLMRouter) -> Any:
    loop = Standings(db, here)
    loop.start()

    async def told() -> bool:
        return bool(here.conditions)

    await until(told)
    await loop.stop()
    return here.conditions


async def test_latency_and_success_of_the_last_ten_minutes(db: Database) -> None:
    for ms in (900, 1000, 5000):
        await called(db, "slow", "success", ms)
    await called(db, "fast", "success", 100)
    await called(db, "fast", "provider_unavailable", 1)
    await called(db, "fast", "bad_request", 1)  # the request's own fault
    await called(db, "fast", "cancelled", 1)
    await called(db, "old", "success", 1, ago=601)
    await called(db, "down", "provider_timeout", 60_000)
    here = router("latency")
    assert await known(db, here) == {
        Candidate("house", "slow"): Standing(1000.0, 1.0),
        Candidate("house", "fast"): Standing(100.0, 0.5),
        Candidate("house", "down"): Standing(None, 0.0),
    }


async def test_open_breakers_are_told_also_to_callers(db: Database, caller_url: str) -> None:
    await called(db, "fast", "success", 100)
    for model, seconds in (("fast", 60), ("new", 60), ("slow", -1)):
        await sql(db, "select nexus.open_breaker('house', %s, 'failures', %s)", model, seconds)
    caller = await Database.open(caller_url)
    conditions, calls = await read_standings(caller)
    await caller.close()
    assert calls == 1
    found = {candidate.model: standing for candidate, standing in conditions.items()}
    assert 50 < (found["fast"].breaker_open or 0) < 61
    assert (found["fast"].latency_ms, found["new"].latency_ms) == (100.0, None)
    assert found["slow"].breaker_open is None  # a probe is due
    told = router("route").explain(Wanted("simple"), conditions)
    assert [(one.candidate.model, one.position) for one in told.considered] == [
        *(("slow", 1), ("fast", None), ("new", None))
    ]
    assert "its breaker is open: left alone for" in str(told.considered[1].why_out)


async def test_they_order_the_route(db: Database) -> None:
    await called(db, "slow", "success", 900)
    await called(db, "fast", "success", 100)
    await called(db, "fast", "provider_unavailable", 1)
    by_latency, by_success = router("latency"), router("success_rate")
    for here in (by_latency, by_success):
        await known(db, here)
    order = [candidate.model for candidate in by_latency.selection(simple()).candidates]
    assert order == ["fast", "slow", "new"]
    order = [candidate.model for candidate in by_success.selection(simple()).candidates]
    assert order == ["slow", "fast", "new"]
    order = [candidate.model for candidate in by_latency.selection(simple(exploring=True)).candidates]
    assert order == ["new", "fast", "slow"]


async def test_nobody_looks_when_no_route_asks(db: Database) -> None:
    await called(db, "fast", "success", 100)
    here = router("price")
    loop = Standings(db, here)
    loop.start()
    await loop.stop()
    assert here.conditions == {}


async def test_of_many_calls_only_the_last_are_looked_at(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standings, "_MANY", 3)
    for model, ago in (("slow", 400.0), ("fast", 200.0), ("fast", 100.0), ("fast", 5.0)):
        await called(db, model, "success", 100, ago)
    here = router("latency")
    loop = Standings(db, here)
    seen = []
    for _ in range(3):
        await loop._look()
        seen.append({candidate.model for candidate in here.conditions})
    assert seen == [{"slow", "fast"}, {"fast"}, {"fast"}]
