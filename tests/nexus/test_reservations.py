"""Calls in flight: noted at once, in few rows, never in anybody's way, gone when they are booked."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.nexus.books import reservations as module
from pgnexus.nexus.books.attempt import Charge, Estimate
from pgnexus.nexus.books.bookkeeper import Bookkeeper
from pgnexus.nexus.books.reservations import Reservations
from pgnexus.nexus.selection import Candidate
from tests.nexus.books import attempts, call, dies, item, request, reserve, settle, stored, take, worker
from tests.system import sql, until

GPT = Candidate("openai", "gpt-4o")
ESTIMATE = Estimate(100, 1000, Decimal("0.5"))
CHARGE = Charge("agent:a", "usd_per_day", "2030-01-01", Decimal("0.5"))


@pytest.fixture
async def one(db):
    """A worker's id and its reservations."""
    instance_id = uuid4()
    reservations = Reservations(db, instance_id)
    yield reservations
    await reservations.close()


async def rows(db):
    found = await sql(
        db, "select number, json_array_length(calls) as calls from nexus.reservations order by 1"
    )
    return [(row.number, row.calls) for row in found]


def open_some(reservations: Reservations, count: int, charges=()) -> list:
    return [reservations.open(uuid4(), 1, 1, GPT, lambda: ESTIMATE, charges) for _ in range(count)]


async def test_calls_that_begin_together_are_one_row(db, one):
    opened = open_some(one, 100)
    await asyncio.gather(*(reservation.stored() for reservation in opened))
    assert await rows(db) == [(1, 100)]
    [row] = await sql(db, "select calls -> 0 as call from nexus.reservations")
    request_id, attempt, number, _, *rest = row.call
    assert (UUID(request_id), attempt, number) == opened[0].key
    assert rest == ["openai", "gpt-4o", 100, 1000, "0.5", []]


async def test_a_call_that_cannot_be_estimated_takes_no_neighbour_with_it(db, one, caplog):
    def fails() -> Estimate:
        raise ValueError("nested too deep")

    before = open_some(one, 1)[0]
    strange = one.open(uuid4(), 1, 1, GPT, fails, ())
    after = open_some(one, 1)[0]
    await asyncio.gather(*(reservation.stored() for reservation in (before, strange, after)))
    assert await rows(db) == [(1, 2)]
    assert str(strange.key[0]) in caplog.text


async def test_a_row_has_an_end(db, one):
    opened = open_some(one, 1200)
    await opened[-1].stored()
    assert await rows(db) == [(1, 500), (2, 500), (3, 200)]


async def test_a_row_goes_with_the_next_when_all_its_calls_are_booked(db, one):
    first, second = open_some(one, 2)
    await first.stored()
    one.booked([first.key])
    [third] = open_some(one, 1)
    await third.stored()
    assert await rows(db) == [(1, 2), (2, 1)]
    one.booked([second.key])
    [fourth] = open_some(one, 1)
    await fourth.stored()
    assert await rows(db) == [(2, 1), (3, 1)]


async def test_the_last_row_goes_by_itself(db, one, monkeypatch):
    monkeypatch.setattr(module, "_LINGER", 0.01)
    [only] = open_some(one, 1)
    await only.stored()
    one.booked([only.key])
    await until(lambda: _none(db))
    assert one.in_flight == 0


async def _none(db):
    return await rows(db) == []


async def test_what_ends_before_it_was_stored_is_never_written(db, one):
    booked, withdrawn, flying = open_some(one, 3)
    one.booked([booked.key])
    one.withdraw(withdrawn)
    await flying.stored()
    assert await rows(db) == [(1, 1)]


async def test_a_call_of_the_same_number_takes_the_place_of_the_one_before(db, one):
    [first] = open_some(one, 1)
    await first.stored()
    again = one.open(*first.key, GPT, lambda: ESTIMATE, ())
    await again.stored()
    one.booked([first.key])
    assert one.in_flight == 0
    await one.close()
    assert await rows(db) == []


async def test_closing_leaves_only_what_is_in_flight(db):
    reservations = Reservations(db, uuid4())
    first, _ = open_some(reservations, 2)
    await first.stored()
    [third] = open_some(reservations, 1)
    await third.stored()
    reservations.booked([third.key])
    open_some(reservations, 1)
    await reservations.close()
    assert await rows(db) == [(1, 2), (3, 1)]


async def test_a_database_that_is_away_holds_up_only_those_who_wait(db, one, monkeypatch):
    back, real = asyncio.Event(), Database.query

    async def query(self, name, params=None):
        if not back.is_set():
            raise DatabaseUnavailable("away")
        return await real(self, name, params)

    monkeypatch.setattr(Database, "query", query)
    charged, *_ = open_some(one, 3, [CHARGE])
    waiting = asyncio.create_task(charged.stored())
    while one._rows:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(100):  # calls come and go meanwhile
        opened = open_some(one, 50)
        await asyncio.sleep(0)
        one.booked([reservation.key for reservation in opened])
    assert not waiting.done()
    assert one.in_flight == 3
    assert len(one._rows) <= 1
    back.set()
    await waiting
    assert (1, 3) in await rows(db)


async def test_what_the_database_refuses_is_told_to_who_waits(db, one, caplog):
    await sql(db, "alter table nexus.reservations add constraint never check (number < 0)")
    [refused] = open_some(one, 1, [CHARGE])
    with pytest.raises(psycopg.errors.CheckViolation):
        await refused.stored()
    assert "not noted" in caplog.text
    await sql(db, "alter table nexus.reservations drop constraint never")
    [taken] = open_some(one, 1)
    await taken.stored()


async def test_a_fault_of_the_moment_is_told_to_nobody(db, one):
    await sql(db, "create sequence nexus.tries")
    await sql(
        db,
        """create function nexus.deadlock() returns trigger language plpgsql as $$ begin
             if nextval('nexus.tries') < 3 then raise exception using errcode = '40P01'; end if;
             return new; end $$""",
    )
    await sql(
        db,
        "create trigger deadlock before insert on nexus.reservations for each row execute function nexus.deadlock()",
    )
    [taken] = open_some(one, 1, [CHARGE])
    await taken.stored()
    assert await rows(db) == [(1, 1)]


async def test_being_cancelled_while_waiting_troubles_nobody_else(db, one):
    first, second = open_some(one, 2)
    given_up = asyncio.create_task(first.stored())
    await asyncio.sleep(0)
    given_up.cancel()
    await second.stored()
    assert await rows(db) == [(1, 2)]


async def test_a_worker_that_was_given_up_leaves_its_calls_to_the_books(db, monkeypatch):
    monkeypatch.setattr(module, "_LINGER", 0.01)
    instance_id = await worker(db)
    reservations = Reservations(db, instance_id)
    request_ids = [await request(db), await request(db)]
    claims = [await take(db, instance_id) for _ in request_ids]
    for claim in claims:
        reservation = reservations.open(claim.run_id, claim.attempt, 1, GPT, lambda: ESTIMATE, [CHARGE])
    await reservation.stored()
    reservations.forget()
    assert reservations.in_flight == 0
    [after] = open_some(reservations, 1)
    await after.stored()
    await until(lambda: _unknown(db, 2))
    assert await rows(db) == [(2, 1)]
    # and an answer that came in spite of all takes that place
    await settle(db, instance_id, item(claims[0], "success", call()))
    [row] = await attempts(db, claims[0].run_id)
    assert row.outcome == "success"
    await reservations.close()


async def _unknown(db, count):
    found = await sql(db, "select 1 from nexus.attempts where outcome = 'unknown'")
    return len(found) == count


async def test_the_commit_does_not_wait_for_the_disk(db):
    async with db.connection() as connection, connection.transaction():
        await connection.execute("set local synchronous_commit = on")
        await connection.execute("select nexus.reserve(%s, 1, '[]', '{}', '{}')", [uuid4()])
        [(setting,)] = await (await connection.execute("show synchronous_commit")).fetchall()
    assert setting == "off"


async def test_the_nexus_role_may_do_all_this(db, nexus_url):
    own = await Database.open(nexus_url)
    instance_id = await worker(db)
    request_id = await request(db)
    claim = await take(db, instance_id)
    reservations = Reservations(own, instance_id)
    reservation = reservations.open(claim.run_id, claim.attempt, 1, GPT, lambda: ESTIMATE, [CHARGE])
    await reservation.stored()
    await sql(db, "select nexus_api.cancel(%s)", [request_id])
    await stored(db, request_id)
    await dies(db, instance_id)
    bookkeeper = Bookkeeper(own, uuid4(), 0.05)
    bookkeeper.start()
    row = await until(lambda: _cost(db, request_id))
    assert (row.status, row.cost, row.attempts) == ("cancelled", Decimal("0.5"), 1)
    await bookkeeper.stop()
    await reservations.close()
    await own.close()


async def _cost(db, request_id):
    row = await stored(db, request_id)
    return row if row.cost is not None else None


async def test_several_bookkeepers_book_each_call_once(db):
    dead = [await worker(db) for _ in range(5)]
    total = 0
    charge = CHARGE.to_json() | {"reserved": "0.1"}
    for instance_id in dead:
        for number in range(1, 21):
            rest = ["2030-01-01T00:00:00Z", "openai", "gpt-4o", 1, 1, "0.1", [charge]]
            await reserve(db, instance_id, number, *([str(uuid4()), 1, 1, *rest] for _ in range(5)))
            total += 5
        await dies(db, instance_id)
    await asyncio.gather(*(sql(db, "select * from nexus.bury()") for _ in range(6)))
    await sql(db, "select * from nexus.bury()")
    [row] = await sql(db, "select count(*) as calls, sum(cost) as cost from nexus.attempts")
    assert (row.calls, row.cost) == (total, total * Decimal("0.1"))
    [row] = await sql(db, "select sum(spent) as spent from nexus.charged")
    assert row.spent == total * Decimal("0.1")
