"""Tasks that wait for an answer: a worker defers them, and whoever comes by answers, in batches of any order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from tests.flow.model.oracle import error_of
from tests.flow.model.world import Connection, Task, World, fetch, jsonb


async def defer(
    world: World, connection: Connection, worker_id: Any, tasks: Sequence[Task], attempts: list[Any]
) -> None:
    """Defer a worker's tasks; those that ended meanwhile are refused."""
    tokens = {uuid4(): task for task in tasks}
    rows = await fetch(
        connection,
        """select d as token from pgflow.defer_tasks(%s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::uuid[],
             array_fill(now() + interval '1 day', array[%s]), array_fill('{"kind": "test"}'::jsonb, array[%s])) d""",
        *(worker_id, [task[0] for task in tasks], [task[1] for task in tasks], [task[2] for task in tasks]),
        *(attempts, list(tokens), len(tasks), len(tasks)),
    )
    for row in rows:
        world.deferred[row.token] = tokens[row.token]
    for task in {tokens[token] for token in tokens.keys() - {row.token for row in rows}}:
        await world.check_refusal(connection, task)


async def answer(world: World, connection: Connection, chance: random.Random) -> None:
    """Answer some of the waiting tasks, once each: with their outputs, or with their errors."""
    tokens = chance.sample(list(world.deferred), chance.randint(1, len(world.deferred)))
    tasks = {token: world.deferred.pop(token) for token in tokens}
    failing = [token for token in tokens if world.fails_now(tasks[token])]
    good = [token for token in tokens if token not in failing]
    accepted = await fetch(
        connection,
        "select a as token from pgflow.complete_deferred(%s::uuid[], %s::jsonb[]) a",
        *(good, [jsonb(world.plan(tasks[token]).output) for token in good]),
    )
    for token in failing:
        world.failures[tasks[token]] += 1
    accepted += await fetch(
        connection,
        "select a as token from pgflow.fail_deferred(%s::uuid[], %s::text[], %s::bool[]) a",
        *(failing, [error_of(*tasks[token][1:]) for token in failing]),
        [world.is_doomed(tasks[token]) and chance.random() < 0.5 for token in failing],
    )
    for token in tasks.keys() - {row.token for row in accepted}:
        await world.check_refusal(connection, tasks[token])
