"""Circuit breakers: what opens one, who probes it, and that all workers know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from system import fast, sql, until

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import (
    AuthenticationFailed,
    BadRequest,
    ContextTooLong,
    ProviderUnavailable,
    TooManyRequests,
)
from pgnexus.messages import LLMRequest, Usage, new_request_id
from pgnexus.nexus.calls.breakers import Breakers
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.selection import Candidate
from pgnexus.providers.provider import Completion
from pgnexus.testing import FakeLLM
from tests.nexus.gates import gate, register

ONE = Candidate("openai", "gpt-4o")
OTHER = Candidate("openai", "gpt-4o-mini")
DOWN = ProviderUnavailable("down")
FINE = Completion({"role": "assistant", "content": "Hi"}, "Hi", "gpt-4o", "stop", Usage())

Worker = Callable[..., Awaitable[Breakers]]


@pytest.fixture
async def worker(database_url) -> AsyncIterator[Worker]:
    async with AsyncExitStack() as stack:

        async def start(**settings: object) -> Breakers:
            loaded = fast(database_url, **{"breaker_failures": 3, "breaker_seconds": 60.0} | settings)
            db = await Database.open(database_url)
            stack.push_async_callback(db.close)
            listener = Listener(database_url)
            breakers = Breakers(db, listener, loaded, await register(db))
            await listener.start()
            stack.push_async_callback(listener.stop)
            breakers.start()
            stack.push_async_callback(breakers.stop)
            return breakers

        yield start


def request(**fields: object) -> LLMRequest:
    said = [{"role": "user", "content": "Hello"}]
    return LLMRequest.model_validate({"request_id": new_request_id(), "messages": said} | fields)


def hear(breakers: Breakers, *answers: Completion | Exception, candidate: Candidate = ONE) -> None:
    for answer in answers:
        breakers.hear(candidate, answer)


async def opened(breakers: Breakers, candidate: Candidate = ONE) -> float:
    async def is_open() -> float | None:
        return breakers.open_for(candidate)

    return await until(is_open)


async def time_passes(db: Database) -> None:
    await sql(db, "update nexus.breakers set open_until = clock_timestamp() - interval '1 second'")
    await sql(db, "select pg_notify('pgnexus_breakers', '')")


async def test_failures_in_a_row_open_it_for_every_worker(worker, db):
    here, there = await worker(), await worker()
    hear(here, DOWN, DOWN)
    assert here.open_for(ONE) is None
    hear(here, DOWN)
    assert 55 < (here.open_for(ONE) or 0) <= 60
    assert 55 < await opened(there) <= 60
    assert await there.wait_for(ONE) > 55
    assert (here.open_for(OTHER), await here.wait_for(OTHER)) == (None, 0)


@pytest.mark.parametrize("between", [FINE, BadRequest("no"), ContextTooLong("long")])
async def test_what_tells_nothing_bad_of_the_vendor_begins_the_count_anew(worker, between):
    here = await worker()
    hear(here, DOWN, DOWN, between, DOWN, DOWN)
    assert here.open_for(ONE) is None


async def test_a_key_that_is_refused_counts(worker):
    here = await worker()
    hear(here, *[AuthenticationFailed("401")] * 3)
    assert here.open_for(ONE)


async def test_one_worker_probes_and_its_success_closes_it_for_all(worker, db):
    here, there = await worker(), await worker()
    hear(here, DOWN, DOWN, DOWN)
    await opened(there)
    await time_passes(db)

    async def due() -> bool:
        return here.open_for(ONE) == there.open_for(ONE) == 0

    await until(due)
    waits = [await breakers.wait_for(ONE) for breakers in (here, there, here, there)]
    assert sorted(waits)[0] == 0
    assert waits.count(0) == 1
    prober = here if waits[0] == 0 else there
    hear(prober, FINE)

    async def closed() -> bool:
        return here.open_for(ONE) is None and there.open_for(ONE) is None

    await until(closed)
    assert await sql(db, "select count(*) from nexus.breakers") == [(0,)]
    assert await there.wait_for(ONE) == 0


async def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_limit(worker, db):
    here = await worker()
    hear(here, DOWN, DOWN, DOWN)
    for expected in (120, 240, 300, 300):

        async def told() -> bool:
            return await sql(db, "select 1 from nexus.breakers where open_until > clock_timestamp()") != []

        await until(told)
        await time_passes(db)

        async def due() -> bool:
            return here.open_for(ONE) == 0

        await until(due)
        assert await here.wait_for(ONE) == 0
        hear(here, DOWN)

        async def longer(expected: int = expected) -> bool:
            rows = await sql(
                db, "select extract(epoch from open_until - clock_timestamp())::float from nexus.breakers"
            )
            return bool(rows) and expected - 20 < rows[0][0] <= expected

        await until(longer)


async def test_a_probe_that_was_given_up_leaves_the_right_to_another(worker, db):
    here, there = await worker(), await worker()
    hear(here, DOWN, DOWN, DOWN)
    await opened(there)
    await until(lambda: sql(db, "select 1 from nexus.breakers"))
    await time_passes(db)

    async def due() -> bool:
        return here.open_for(ONE) == there.open_for(ONE) == 0

    await until(due)
    assert await here.wait_for(ONE) == 0
    assert await there.wait_for(ONE) > 0
    here.give_up(ONE)
    await until(lambda: sql(db, "select 1 from nexus.breakers where probe_until is null"))
    assert await there.wait_for(ONE) == 0


async def test_a_probe_whose_worker_died_leaves_the_right_to_another(worker, db):
    here, there = await worker(), await worker()
    hear(here, DOWN, DOWN, DOWN)
    await opened(there)
    await until(lambda: sql(db, "select 1 from nexus.breakers"))
    await time_passes(db)

    async def due() -> bool:
        return here.open_for(ONE) == there.open_for(ONE) == 0

    await until(due)
    assert await here.wait_for(ONE) == 0
    assert await there.wait_for(ONE) > 0
    await sql(
        db,
        """update pgflow.workers set last_heartbeat_at = now() - interval '1 day'
           where worker_id = (select probe_by from nexus.breakers)""",
    )
    assert await there.wait_for(ONE) == 0


async def test_who_does_not_know_that_it_may_probe_may_ask_again(worker, db):
    here = await worker()
    hear(here, DOWN, DOWN, DOWN)
    await until(lambda: sql(db, "select 1 from nexus.breakers"))
    await time_passes(db)

    async def due() -> bool:
        return here.open_for(ONE) == 0

    await until(due)
    async with db.connection() as connection, connection.transaction():
        await connection.execute("lock table nexus.breakers in exclusive mode")
        asking = asyncio.create_task(here.wait_for(ONE))

        async def waits() -> bool:
            rows = await sql(db, "select 1 from pg_locks where not granted")
            return bool(rows)

        await until(waits)
        asking.cancel()  # its request was cancelled, or its deadline came
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert await here.wait_for(ONE) == 0


async def test_a_retry_after_is_kept_by_all_to_the_second_and_needs_no_probe(worker, db):
    here, there = await worker(), await worker()
    hear(here, TooManyRequests("slow down", retry_after=17.0))
    assert 16 < (here.open_for(ONE) or 0) <= 17
    assert 16 < await opened(there) <= 17
    hear(here, TooManyRequests("slow down", retry_after=5.0))  # a call that was under way
    assert 16 < (here.open_for(ONE) or 0) <= 17
    await time_passes(db)

    async def over() -> bool:
        return here.open_for(ONE) is None and there.open_for(ONE) is None

    await until(over)
    assert [await there.wait_for(ONE) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("wait", [None, 0.1])
async def test_a_rate_limit_without_a_wait_worth_sharing_stops_nobody(worker, wait):
    here = await worker()
    hear(here, *[TooManyRequests("slow down", retry_after=wait)] * 5)
    assert here.open_for(ONE) is None


async def test_the_roles_hold(nexus_url, caller_url):
    nexus, caller = await Database.open(nexus_url), await Database.open(caller_url)
    try:
        await nexus.query(
            "open_breaker", {"provider": "a", "model": "b", "reason": "failures", "seconds": 60.0}
        )
        [row] = await sql(caller, "select provider, model, reason, times from nexus_api.breakers()")
        assert tuple(row) == ("a", "b", "failures", 1)
        with pytest.raises(Exception, match="permission denied"):
            await sql(caller, "select * from nexus.breakers")
    finally:
        await nexus.close()
        await caller.close()


async def test_many_workers_that_see_one_outage_count_it_once(worker, db):
    workers = [await worker() for _ in range(4)]
    for one in workers:
        hear(one, DOWN, DOWN, DOWN)
    await asyncio.gather(*(opened(one) for one in workers))
    for one in workers:
        await one.stop()
    assert await sql(db, "select times from nexus.breakers") == [(1,)]


async def test_a_retry_after_that_is_over_is_no_failure(worker, db):
    here = await worker()
    hear(here, TooManyRequests("slow down", retry_after=17.0))
    await until(lambda: sql(db, "select 1 from nexus.breakers"))
    await time_passes(db)

    async def over() -> bool:
        return here.open_for(ONE) is None

    await until(over)
    hear(here, DOWN, DOWN)
    assert here.open_for(ONE) is None
    hear(here, DOWN)
    assert 55 < (here.open_for(ONE) or 0) <= 60
    await until(lambda: sql(db, "select 1 from nexus.breakers where reason = 'failures' and times = 1"))
    [(left,)] = await sql(
        db, "select extract(epoch from open_until - clock_timestamp())::float from nexus.breakers"
    )
    assert left <= 60


def broken(_: object) -> object:
    raise RuntimeError("a fault of ours")


async def probe_is_due(here: Breakers, db: Database) -> None:
    hear(here, DOWN, DOWN, DOWN)
    await until(lambda: sql(db, "select 1 from nexus.breakers"))
    await time_passes(db)

    async def due() -> bool:
        return here.open_for(ONE) == 0

    await until(due)


@pytest.mark.parametrize("why", ["quota_exceeded", "internal"])
async def test_a_call_that_tells_nothing_of_the_vendor_closes_nothing(worker, db, database_url, why):
    """The one that was to probe was over its budget, or failed in our own code."""
    here = await worker()
    await probe_is_due(here, db)
    fake = FakeLLM()
    settings = fast(database_url, budgets={"openai": {"tokens_per_day": 1}})
    async with gate(db, budgets={"openai": {"tokens_per_day": 1}}) as budget:
        router = LLMRouter(
            settings, fake(settings), breakers=here, gate=budget if why == "quota_exceeded" else None
        )
        fake.answer = broken
        outcome = await router.route(request(model=str(ONE)))
    assert outcome.error is not None
    assert outcome.error.type == why
    assert here.open_for(ONE) == 0
    await until(lambda: sql(db, "select 1 from nexus.breakers where probe_until is null"))


async def test_who_waits_for_a_probe_comes_back_less_and_less_often(worker, db, database_url):
    """Not after a second each time: that would use up all attempts while the vendor keeps the probe waiting."""
    here = await worker()
    fake = FakeLLM()
    settings = fast(database_url)
    router = LLMRouter(settings, fake(settings), breakers=here)
    await probe_is_due(here, db)
    assert await here.wait_for(ONE) == 0  # the probe
    other = await router.route(request(model=str(ONE)))
    assert other.error is not None
    assert (other.retryable, other.retry_after, fake.calls) == (True, None, [])
