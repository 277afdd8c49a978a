"""Outbox: batches of what became of tasks, halved to the culprit, said again after an outage."""

from __future__ import annotations

import asyncio
import logging

import psycopg

from pgnexus.errors import DatabaseUnavailable
from pgnexus.flow.work.batches import MAX_BATCH, Outbox
from pgnexus.portions import LARGEST_STATEMENT


class Table:
    """What is stored, in which calls; ``faults`` are raised by the next calls, first to last."""

    def __init__(self, *faults: Exception, poison: object = None, size=lambda _: 1, concurrency=2):
        self.faults = list(faults)
        self.poison = poison
        self.calls: list[list[object]] = []
        self.stored: list[object] = []
        self.refused: list[object] = []
        self.changed = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.box = Outbox("test", self.store, self.refuse, size=size, concurrency=concurrency)

    async def store(self, items):
        self.calls.append(list(items))
        self.changed.set()
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        if self.poison in items:
            raise ValueError("poison")
        self.stored += items
        self.changed.set()

    def refuse(self, item, error):
        self.refused.append((item, str(error)))
        self.changed.set()

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await self.changed.wait()


async def test_what_is_put_in_one_turn_goes_together():
    table = Table()
    for item in range(10):
        table.box.put(item)
    await table.until(lambda: len(table.stored) == 10)
    assert table.calls == [list(range(10))]


async def test_what_is_put_meanwhile_goes_in_the_next_call_or_beside_when_it_is_much():
    table = Table()
    table.gate.clear()
    table.box.put(0)
    await table.until(lambda: table.calls)
    for item in range(1, 11):
        table.box.put(item)
    await asyncio.sleep(0)
    assert table.calls == [[0]]
    for item in range(11, 201):
        table.box.put(item)
    await table.until(lambda: len(table.calls) == 2)
    assert len(table.calls[1]) == 200
    table.box.put(201)
    await asyncio.sleep(0)
    assert len(table.calls) == 2
    table.gate.set()
    await table.until(lambda: len(table.stored) == 202)


async def test_batches_are_bounded_by_number_and_by_size():
    table = Table(concurrency=1)
    for item in range(MAX_BATCH + 1):
        table.box.put(item)
    await table.until(lambda: len(table.stored) == MAX_BATCH + 1)
    assert [len(call) for call in table.calls] == [MAX_BATCH, 1]

    large = Table(size=lambda item: item, concurrency=1)
    sizes = [LARGEST_STATEMENT // 2, LARGEST_STATEMENT // 2, 1, LARGEST_STATEMENT * 2, 1]
    for item in sizes:
        large.box.put(item)
    await large.until(lambda: len(large.stored) == 5)
    assert [len(call) for call in large.calls] == [2, 1, 1, 1]


async def test_the_culprit_of_a_fault_stands_alone():
    table = Table(poison=13)
    for item in range(20):
        table.box.put(item)
    await table.until(lambda: table.refused and len(table.stored) == 19)
    assert table.refused == [(13, "poison")]
    assert sorted(table.stored) == [item for item in range(20) if item != 13]


async def test_after_an_outage_and_after_a_deadlock_the_same_is_said_again(caplog):
    table = Table(DatabaseUnavailable("away"), psycopg.errors.DeadlockDetected("circle"))
    with caplog.at_level(logging.WARNING):
        table.box.put("a")
        await table.until(lambda: table.stored)
    assert table.calls == [["a"]] * 3
    assert table.refused == []
    assert "1 not stored yet: DeadlockDetected: circle" in caplog.text


async def test_what_is_abandoned_is_not_stored():
    table = Table()
    table.gate.clear()
    table.box.put("a")
    await table.until(lambda: table.calls)
    table.box.put("b")
    table.box.abandon()
    table.gate.set()
    await asyncio.sleep(0.01)
    assert table.stored == []
    assert table.calls == [["a"]]
