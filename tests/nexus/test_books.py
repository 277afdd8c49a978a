"""The books: every attempt is a row, results tell their sum, and calls of the dead are paid for."""

from __future__ import annotations

from decimal import Decimal
from uuid import uuid4

import pytest

from pgnexus.caller.results import JobResult
from pgnexus.messages import LLMResult, Usage
from tests.nexus.books import (
    attempts,
    call,
    dies,
    item,
    noted,
    request,
    reserve,
    settle,
    stored,
    take,
    worker,
)
from tests.system import sql

NIL = "00000000-0000-0000-0000-000000000000"
TOKENS = ("prompt_tokens", "completion_tokens")
CHARGE = {"scope": "agent:a", "kind": "usd_per_day", "period": "2030-01-01", "reserved": "0.5"}


async def spent(db):
    [row] = await sql(
        db, "select coalesce(sum(spent), 0) as spent from nexus.charged where scope = 'agent:a'"
    )
    return row.spent


async def recover(db):
    await sql(db, "select * from pgflow.recover_tasks()")


async def bury(db):
    return {row.instance_id: row.calls for row in await sql(db, "select * from nexus.bury()")}


async def amend(db):
    [row] = await sql(db, "select nexus.amend_results(100) as amended")
    return row.amended


async def test_a_call_is_a_row_with_all_that_is_known_of_it(db):
    one = await worker(db)
    request_id = await request(db, agent_id="a", task_type="coder")
    claim = await take(db, one)
    told = call(cached_tokens=4, cache_write_tokens=3, reasoning_tokens=1, error="late", estimated=True)
    await settle(db, one, item(claim, "success", told, agent_id="a", task_type="coder"))
    [row] = await attempts(db, request_id)
    assert (row.attempt, row.call, row.instance_id, row.outcome) == (1, 1, one, "success")
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (10, 2, 4)
    assert (row.cache_write_tokens, row.reasoning_tokens) == (3, 1)
    assert (row.cost, row.estimated, row.error) == (Decimal("0.01"), True, "late")
    assert (row.agent_id, row.task_type) == ("a", "coder")


async def test_a_settlement_that_is_said_twice_is_booked_once(db):
    one = await worker(db)
    request_id = await request(db)
    claim = await take(db, one)
    said = item(claim, "success", call(charges=[CHARGE | {"actual": "0.25"}]), call(2))
    assert await settle(db, one, said) == [request_id]
    await settle(db, one, said)
    assert [row.call for row in await attempts(db, request_id)] == [1, 2]
    assert await spent(db) == Decimal("0.25")
    assert (await stored(db, request_id)).attempts == 2


async def test_a_result_tells_the_sum_of_the_retries_before_it(db):
    one = await worker(db)
    request_id = await request(db)
    for _ in range(2):
        failed = call(outcome="provider_timeout", estimated=True, cost="0.0200000000000000000001")
        await settle(db, one, item(await take(db, one), "retry", failed))
    await settle(db, one, item(await take(db, one), "success", call(reasoning_tokens=1)))
    row = await stored(db, request_id)
    assert row.cost == Decimal("0.0500000000000000000002")
    assert (row.prompt_tokens, row.completion_tokens, row.total_tokens, row.attempts) == (30, 6, 36, 3)
    assert (row.reasoning_tokens, row.cache_write_tokens) == (1, None)
    assert row.output["estimated"] is True


async def test_a_failure_tells_the_sum_too(db):
    one = await worker(db)
    request_id = await request(db)
    await settle(db, one, item(await take(db, one), "retry", call(outcome="bad_answer")))
    await settle(db, one, item(await take(db, one), "failed", call(outcome="bad_answer")))
    row = await stored(db, request_id)
    assert (row.status, row.cost, row.attempts, row.total_tokens) == ("failed", Decimal("0.02"), 2, 24)


async def test_one_call_of_unknown_price_makes_the_sum_unknown_if_it_used_tokens(db):
    one = await worker(db)
    for used, cost in ((10, None), (0, Decimal("0.01"))):
        request_id = await request(db)
        unpriced = call(cost=None, outcome="bad_answer", prompt_tokens=used, completion_tokens=0)
        await settle(db, one, item(await take(db, one), "retry", unpriced))
        await settle(db, one, item(await take(db, one), "success", call()))
        assert (await stored(db, request_id)).cost == cost


async def test_an_answer_that_another_request_got_is_free_whatever_was_asked_in_vain_before_it(db):
    one = await worker(db)
    request_id = await request(db)
    refused = call(cost=None, outcome="provider_unavailable", prompt_tokens=0, completion_tokens=0)
    await settle(db, one, item(await take(db, one), "retry", refused))
    shared = item(await take(db, one), "success")
    shared["result"] |= {"shared": True, "cost": "0"}
    await settle(db, one, shared)
    row = await stored(db, request_id)
    assert (row.cost, row.attempts, row.output["shared"]) == (0, 1, True)


async def test_a_result_of_one_call_is_as_the_worker_told_it(db):
    one = await worker(db)
    request_id = await request(db)
    said = item(await take(db, one), "success", call())
    said["result"]["usage"]["total_tokens"] = 15  # some vendors count more than both parts
    await settle(db, one, said)
    assert (await stored(db, request_id)).total_tokens == 15


async def test_calls_of_a_request_that_was_given_back_uncounted_are_told_and_keep_their_rows(db):
    one, two = await worker(db), await worker(db)
    request_id = await request(db)
    for who in (one, one, two):  # each time it is attempt 1, call 1
        claim = await take(db, who)
        assert claim.attempt == 1
        await settle(db, who, item(claim, "release", call(outcome="cancelled", charges=[CHARGE])))
    said = item(await take(db, one), "success", call())
    await settle(db, one, said)
    await settle(db, one, said)
    rows = await attempts(db, request_id)
    assert sorted((row.call, row.instance_id) for row in rows) == sorted(
        [(1, one), (2, one), (3, one), (1, two)]
    )
    row = await stored(db, request_id)
    assert (row.cost, row.attempts) == (Decimal("0.04"), 4)
    assert await spent(db) == Decimal("1.5")


async def test_a_dead_worker_s_call_is_unknown_at_what_was_reserved_and_in_the_result(db):
    dead, next_one = await worker(db), await worker(db)
    request_id = await request(db, agent_id="a", complexity="simple")
    await reserve(db, dead, 1, noted(await take(db, dead), charges=[CHARGE]))
    await dies(db, dead)
    await recover(db)
    claim = await take(db, next_one)
    assert claim.attempt == 2
    await settle(db, next_one, item(claim, "success", call()))  # nobody had buried it before
    unknown, row = await attempts(db, request_id)
    assert (unknown.outcome, unknown.instance_id, unknown.estimated) == ("unknown", dead, True)
    assert (unknown.prompt_tokens, unknown.completion_tokens, unknown.cost) == (100, 1000, Decimal("0.5"))
    assert (unknown.agent_id, unknown.complexity, unknown.error) == ("a", "simple", "its worker was lost")
    assert row.outcome == "success"
    result = await stored(db, request_id)
    assert (result.cost, result.attempts, result.total_tokens) == (Decimal("0.51"), 2, 1112)
    assert result.output["estimated"] is True
    assert await spent(db) == Decimal("0.5")
    assert await bury(db) == {}
    assert await sql(db, "select 1 from nexus.reservations") == []


async def test_a_worker_that_settles_while_it_is_taken_for_dead_buries_nothing_of_that(db):
    one = await worker(db)
    request_id = await request(db)
    await settle(db, one, item(await take(db, one), "retry", call(outcome="bad_answer")))
    claim = await take(db, one)
    await reserve(db, one, 1, noted(claim, charges=[CHARGE]))
    await dies(db, one)
    settled = item(claim, "success", call(cost="0.25", charges=[CHARGE | {"actual": "0.25"}]))
    assert await settle(db, one, settled) == [request_id]
    assert [row.outcome for row in await attempts(db, request_id)] == ["bad_answer", "success"]
    assert await spent(db) == Decimal("0.25")
    row = await stored(db, request_id)
    assert (row.cost, row.attempts) == (Decimal("0.26"), 2)


async def test_what_is_booked_or_alive_is_not_buried(db):
    one, two = await worker(db), await worker(db)
    booked, flying = await request(db), await request(db)
    claim, other = await take(db, one), await take(db, two)
    await reserve(db, one, 1, noted(claim, charges=[CHARGE]))
    await reserve(db, two, 1, noted(other))
    await settle(db, one, item(claim, "success", call(charges=[CHARGE | {"actual": "0.1"}])))
    await dies(db, one)
    assert await bury(db) == {one: 0}
    assert [row.outcome for row in await attempts(db, booked)] == ["success"]
    assert await attempts(db, flying) == []
    assert await spent(db) == Decimal("0.1")
    assert [row.instance_id for row in await sql(db, "select instance_id from nexus.reservations")] == [two]


async def test_one_of_unknown_price_stays_so(db):
    dead = await worker(db)
    request_id = await request(db)
    await reserve(db, dead, 1, noted(await take(db, dead), cost=None))
    await dies(db, dead)
    assert await bury(db) == {dead: 1}
    [row] = await attempts(db, request_id)
    assert (row.outcome, row.cost) == ("unknown", None)


async def test_a_worker_that_was_only_frozen_replaces_the_unknown_and_corrects_the_charge(db):
    frozen, next_one = await worker(db), await worker(db)
    request_id = await request(db)
    claim = await take(db, frozen)
    await reserve(db, frozen, 1, noted(claim, charges=[CHARGE]))
    await dies(db, frozen)
    await recover(db)
    await settle(db, next_one, item(await take(db, next_one), "success", call()))
    assert (await stored(db, request_id)).cost == Decimal("0.51")
    late = item(claim, "success", call(cost="0.02", charges=[CHARGE | {"actual": "0.02"}]))
    for _ in range(2):
        assert await settle(db, frozen, late) == []
    assert [row.outcome for row in await attempts(db, request_id)] == ["success", "success"]
    assert await spent(db) == Decimal("0.02")
    assert await amend(db) == 3  # when it was buried, and when it settled, twice
    row = await stored(db, request_id)
    assert (row.status, row.cost, row.attempts, row.total_tokens) == ("success", Decimal("0.03"), 2, 24)
    assert "estimated" not in row.output
    assert row.output["response"] == "Hi"
    assert await amend(db) == 0


async def test_a_call_that_comes_back_before_it_was_buried_is_never_unknown(db):
    frozen = await worker(db)
    request_id = await request(db)
    claim = await take(db, frozen)
    await reserve(db, frozen, 1, noted(claim, charges=[CHARGE]))
    await dies(db, frozen)
    await recover(db)
    await settle(db, frozen, item(claim, "release", call(outcome="cancelled", charges=[CHARGE])))
    assert await bury(db) == {frozen: 0}
    assert [row.outcome for row in await attempts(db, request_id)] == ["cancelled"]
    assert await spent(db) == Decimal("0.5")


async def test_a_cancelled_request_is_told_what_its_abandoned_call_cost(db):
    one = await worker(db)
    request_id = await request(db)
    claim = await take(db, one)
    await sql(db, "select nexus_api.cancel(%s)", [request_id])
    assert (await stored(db, request_id)).status == "cancelled"
    assert await settle(db, one, item(claim, "failed", call(outcome="cancelled", estimated=True))) == []
    assert await amend(db) == 1
    row = await stored(db, request_id)
    assert (row.status, row.cost, row.attempts, row.finished_at is None) == (
        "cancelled",
        Decimal("0.01"),
        1,
        False,
    )


@pytest.mark.parametrize("over", [{"prompt_tokens": 0, "completion_tokens": 0, "cost": None}, {}])
async def test_who_cancels_between_two_tries_is_told_of_the_first(db, over):
    one = await worker(db)
    request_id = await request(db)
    failure = call(outcome="provider_unavailable", **over)
    assert await settle(db, one, item(await take(db, one), "retry", failure, delay=60)) == [request_id]
    await sql(db, "select pgnexus.cancel(%s)", [request_id])
    row = await stored(db, request_id)
    told = (row.status, row.cost, row.prompt_tokens, row.completion_tokens, row.attempts)
    assert told == ("cancelled", failure["cost"] and Decimal("0.01"), *map(failure.get, TOKENS), 1)


async def test_late_calls_wait_for_a_result_that_is_still_on_its_way(db):
    one = await worker(db)
    request_id = await request(db)
    claim = await take(db, one)
    await sql(db, "select nexus_api.cancel(%s)", [request_id])
    await settle(db, one, item(claim, "failed", call(outcome="cancelled")))
    assert await amend(db) == 0  # the caller's side has not taken the result yet
    assert (await stored(db, request_id)).cost is None
    assert await amend(db) == 1
    assert (await stored(db, request_id)).cost == Decimal("0.01")


async def test_late_calls_of_a_request_that_nobody_has_a_row_of_are_let_go(db):
    await sql(db, "insert into nexus.late_calls (request_id) values (%s)", uuid4())
    assert await amend(db) == 1
    assert await sql(db, "select 1 from nexus.late_calls") == []


async def test_burial_frees_what_the_dead_held(db):
    dead = await worker(db)
    await sql(
        db,
        """insert into nexus.holdings (scope, kind, period, instance_id, leased)
           values ('agent:a', 'usd_per_day', '2030-01-01', %s, 5)""",
        dead,
    )
    assert await bury(db) == {}
    await dies(db, dead)
    assert await bury(db) == {dead: 0}
    assert await sql(db, "select 1 from nexus.holdings") == []


@pytest.mark.parametrize("lost", [True, False])
async def test_a_worker_that_had_been_given_up_buries_what_it_had(db, lost):
    one = await worker(db)
    request_id = await request(db)
    await reserve(db, one, 7, noted(await take(db, one), charges=[CHARGE]))
    await sql(db, "select nexus.reserve(%s, 8, null, %s, %s)", one, [] if lost else [7], [7] if lost else [])
    assert [row.outcome for row in await attempts(db, request_id)] == (["unknown"] if lost else [])
    assert await spent(db) == (Decimal("0.5") if lost else 0)
    assert await sql(db, "select 1 from nexus.reservations") == []


async def test_a_stored_result_has_all_kinds_of_tokens(db):
    usage = Usage(
        prompt_tokens=10,
        completion_tokens=5,
        total_tokens=15,
        cached_tokens=4,
        cache_write_tokens=3,
        reasoning_tokens=2,
    )
    told = LLMResult(
        request_id=uuid4(),
        status="success",
        response="Hi",
        usage=usage,
        estimated=True,
        cached=True,
        shared=True,
    )
    plain = LLMResult(request_id=uuid4(), status="success", response="Hi")
    for result in (told, plain):
        assert await JobResult.record_success(db, result)
    rows = [await JobResult.get(db, result.request_id) for result in (told, plain)]
    assert [(row.reasoning_tokens, row.cache_write_tokens) for row in rows if row] == [(2, 3), (None, None)]
    [found] = await JobResult.search(db, limit=1)
    assert found in rows
    results = [row.to_result() for row in rows if row]
    assert [result.usage for result in results] == [usage, Usage()]
    assert [(r.estimated, r.cached, r.shared) for r in results] == [(True, True, True), (False, False, False)]


async def test_a_late_answer_adds_its_tokens_and_cost_and_nothing_else(db):
    request_id = await request(db)
    assert await JobResult.record_timeout(db, request_id)
    usage = Usage(
        prompt_tokens=1, completion_tokens=2, total_tokens=3, reasoning_tokens=2, cache_write_tokens=1
    )
    late = LLMResult(request_id=request_id, status="success", response="Hi", usage=usage, cost=Decimal("0.1"))
    assert not await JobResult.record_success(db, late)
    row = await JobResult.get(db, request_id)
    assert row is not None
    assert (row.status, row.cost, row.total_tokens) == ("timeout", Decimal("0.1"), 3)
    assert "response" not in row.output
    assert (row.reasoning_tokens, row.cache_write_tokens) == (2, 1)
