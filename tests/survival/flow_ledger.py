"""A flow with every kind of step, whose handlers write down what they did; run by processes to be killed.

The ledger is a file, not a table: it outlives a database that is killed, and no transaction takes back a line.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.prompt import Prompt

ITEMS = 50
TASKS = ITEMS + 8  # of one run
PATH = "PGNEXUS_TEST_LEDGER"  # the variable that names the file
BOOKINGS = "create table if not exists public.bookings (run_id uuid, attempt int)"

Entry = tuple[str, str, int, int]  # run, step, task index, attempt


def note(ctx: Context) -> None:
    """One line for this attempt; short lines of many processes do not mix."""
    with Path(os.environ[PATH]).open("a") as file:
        file.write(f"{ctx.run_id} {ctx.step} {ctx.task_index} {ctx.attempt}\n")


def entries(path: Path) -> Counter[Entry]:
    """How often each attempt was begun."""
    lines = (line.split() for line in path.read_text().splitlines())
    return Counter((run, step, int(index), int(attempt)) for run, step, index, attempt in lines)


flow = Flow("survivor", max_attempts=10, base_delay=1)


@flow.step
async def first(input: int, ctx: Context) -> int:
    note(ctx)
    return input


@flow.step
async def second(first: int, ctx: Context) -> int:
    note(ctx)
    return first + 1


@flow.step
async def elements(second: int, ctx: Context) -> list[int]:
    note(ctx)
    return [second * 100 + number for number in range(ITEMS)]


@flow.map(over=elements)
async def item(element: int, ctx: Context) -> int:
    note(ctx)
    await asyncio.sleep(0.05)
    return element


@flow.step
def stubborn(input: int, ctx: Context) -> int:
    note(ctx)
    if ctx.attempt == 1:
        raise ValueError("not at the first attempt")
    return input


@flow.step(transactional=True)
async def booked(input: int, ctx: Context) -> int:
    note(ctx)
    await ctx.connection.execute("insert into public.bookings values (%s, %s)", (ctx.run_id, ctx.attempt))
    await asyncio.sleep(0.1)
    return input


approved = flow.wait("approved", timeout=300, returns=str)


@flow.llm
def asked(input: int) -> Prompt:
    return Prompt(f"question {input}", complexity="simple")


@flow.step
async def end(
    item: list[int], stubborn: int, booked: int, approved: str, asked: str, ctx: Context
) -> list[int | str]:
    note(ctx)
    return [sum(item), stubborn, booked, approved, asked]


def output(number: int, answer: str) -> dict[str, list[int | str]]:
    """What the run with this input gives."""
    total = sum((number + 1) * 100 + one for one in range(ITEMS))
    return {"end": [total, number, number, f"yes {number}", answer]}


slow = Flow("slow", base_delay=0)


@slow.step
async def wait(input: str, ctx: Context) -> int:
    """The first attempt is over before the second, unless it was frozen."""
    await asyncio.sleep(1 if ctx.attempt == 1 else 3)
    return ctx.attempt


blocking = Flow("blocking", base_delay=0, timeout=2)


@blocking.step
async def hold(input: str, ctx: Context) -> int:
    """Hold the event loop of the process that is named, for longer than its test; nobody else's."""
    note(ctx)
    if os.environ.get("PGNEXUS_TEST_BLOCKS"):
        time.sleep(600)  # noqa: ASYNC251 - that is the fault
    return ctx.attempt


@blocking.step
async def beside(input: str, ctx: Context) -> int:
    """In the same process, and not to blame."""
    await asyncio.sleep(0.5)
    return ctx.attempt
