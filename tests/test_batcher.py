"""Batcher: first at once, then together; the culprit alone."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg import errors

from pgnexus.batcher import Batcher
from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable


class Gate:
    """A flush that notes its batches and waits to be let through."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        self.begun.set()
        await self.open.wait()
        return [item * 10 for item in items]


async def test_the_first_goes_at_once_and_the_rest_together() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate)
    first = asyncio.create_task(batcher.submit(0))
    await gate.begun.wait()
    rest = [asyncio.create_task(batcher.submit(n)) for n in range(1, 6)]
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40, 50]
    assert gate.batches == [[0], [1, 2, 3, 4, 5]]


async def test_batches_keep_to_their_size_and_concurrency() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate, max_batch=2, concurrency=2)
    waits = [asyncio.create_task(batcher.submit(n)) for n in range(5)]
    await gate.begun.wait()
    await asyncio.sleep(0)
    assert gate.batches == [[0, 1], [2, 3]]
    gate.open.set()
    assert await asyncio.gather(*waits) == [0, 10, 20, 30, 40]
    assert gate.batches[2:] == [[4]]


async def test_close_drains_and_refuses_what_comes_later() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate, max_batch=1)
    waits = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
    await gate.begun.wait()
    closing = asyncio.create_task(batcher.close())
    gate.open.set()
    await closing
    assert [wait.result() for wait in waits] == [0, 10, 20]
    with pytest.raises(RuntimeError, match="closed"):
        await batcher.submit(9)


async def test_what_is_submitted_and_closed_in_one_turn_is_flushed() -> None:
    gate = Gate()
    gate.open.set()
    batcher: Batcher[int, int] = Batcher(gate)
    wait = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0)
    await batcher.close()
    assert await wait == 10


async def test_what_is_submitted_cancelled_and_closed_in_one_turn_is_not_waited_for() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate)
    wait = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0)
    wait.cancel()
    await batcher.close()
    assert gate.batches == []


async def test_a_cancelled_submitter_takes_its_item_back() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate)
    first = asyncio.create_task(batcher.submit(0))
    await gate.begun.wait()
    second, third = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    assert [await first, await third] == [0, 20]
    assert gate.batches == [[0], [2]]


async def test_an_outcome_that_is_an_exception_is_raised_to_its_submitter() -> None:
    async def flush(items: list[int]) -> list[int | Exception]:
        return [LookupError(str(item)) if item % 2 else item for item in items]

    batcher: Batcher[int, int] = Batcher(flush)
    outcomes = await asyncio.gather(*(batcher.submit(n) for n in range(3)), return_exceptions=True)
    assert outcomes[0] == 0
    assert isinstance(outcomes[1], LookupError)
    assert outcomes[2] == 2


async def test_the_culprit_stands_alone(db: Database) -> None:
    """Real statements: a batch with a value that is no integer is halved down to it."""
    sizes = []

    async def flush(items: list[str]) -> list[int | Exception]:
        sizes.append(len(items))
        async with db.connection() as connection:
            rows = await connection.execute("SELECT unnest(%s::text[])::int", [items])
            return [row[0] for row in await rows.fetchall()]

    batcher: Batcher[str, int] = Batcher(flush)
    items = ["1", "2", "3", "none", "5", "6", "7", "8\0"]
    outcomes = await asyncio.gather(*(batcher.submit(item) for item in items), return_exceptions=True)
    assert [o for o in outcomes if isinstance(o, int)] == [1, 2, 3, 5, 6, 7]
    assert isinstance(outcomes[3], errors.InvalidTextRepresentation)
    assert isinstance(outcomes[7], psycopg.DataError)  # the driver refuses a NUL
    assert sizes[0] == 8


@pytest.mark.parametrize(
    "fault",
    [
        DatabaseUnavailable("gone"),
        errors.SerializationFailure("40001"),
        errors.DeadlockDetected("40P01"),
        errors.AdminShutdown("57P01"),
        psycopg.OperationalError("server closed the connection"),
        KeyError("a fault of ours"),
    ],
)
async def test_other_faults_are_not_halved_and_go_to_all(fault: Exception) -> None:
    flushes = 0

    async def flush(items: list[int]) -> list[int | Exception]:
        nonlocal flushes
        flushes += 1
        raise fault

    batcher: Batcher[int, int] = Batcher(flush)
    outcomes = await asyncio.gather(*(batcher.submit(n) for n in range(4)), return_exceptions=True)
    assert outcomes == [fault] * 4
    assert flushes == 1
    await batcher.close()


async def test_a_flush_that_forgets_an_item_fails_all() -> None:
    async def flush(items: list[int]) -> list[int | Exception]:
        return [1]

    batcher: Batcher[int, int] = Batcher(flush)
    outcomes = await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True)
    assert all(isinstance(outcome, RuntimeError) for outcome in outcomes)
