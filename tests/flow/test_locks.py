"""Everybody locks in one order: whatever is done to the same runs at once, nobody waits in a circle.

Connections complete, fail, release, defer, cancel, retry and recover tasks of the same few runs, in batches of random
order. A deadlock or a serialization failure is an error here; and once a last worker has finished what is left, the
tables must agree with themselves.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.flow.model.client import Client
from tests.flow.model.graph import Graph, Step
from tests.flow.model.world import Connection, Flow, fetch

CONTRADICTIONS = (Path(__file__).parent / "model" / "contradictions.sql").read_text()
CONNECTIONS = 6
ROUNDS = 80
RUNS = 10
# a wide map between two rows of steps that end at the same time: siblings, children in common, skips and cascades
GRAPH = Graph(
    (
        *(Step("first", max_attempts=3), Step("second", max_attempts=3)),
        Step("wide", ("first",), kind="map", max_attempts=3),
        Step("wider", ("wide",), kind="map", max_attempts=2, when_exhausted="skip"),
        Step("left", ("second",), max_attempts=2, when_exhausted="skip-cascade"),
        Step("right", ("second",), max_attempts=3, forbidden={"second": 1}, when_unmet="fail"),
        Step("joined", ("wider", "left", "right"), max_attempts=3),
        Step("beside", ("left",), max_attempts=3),
        Step("last", ("joined", "right"), max_attempts=3),
    )
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
async def test_nobody_waits_in_a_circle(database_url: str, seed: int) -> None:
    url = f"{database_url}&options=-cdeadlock_timeout%3D50ms%20-clock_timeout%3D30s"
    connections = [await psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(CONNECTIONS)]
    flow = Flow(GRAPH)
    await flow.define(connections[0])
    runs = [uuid4() for _ in range(RUNS)]
    clients = [
        Client(connection, flow, runs, seed * 100 + index) for index, connection in enumerate(connections)
    ]
    try:
        did, idle = await _act(clients)
        await clients[0].register()
        await clients[0].finish()
        assert await _contradictions(connections[0], flow.queue, runs) == []
        assert not idle, did
    finally:
        for connection in connections:
            await connection.close()


async def _act(clients: list[Client]) -> tuple[Counter[str], list[str]]:
    """What they did, and what none of them did: which one comes to something hangs on who is faster, so that rare
    ones may need more rounds.
    """
    for _ in range(10):
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.act(ROUNDS))
        did = sum((client.did for client in clients), Counter[str]())
        idle = [
            name for name in ("claim", "complete", "fail", "cancel", "retry", "be_recovered") if not did[name]
        ]
        if not idle:
            break
    return did, idle


async def _contradictions(connection: Connection, queue: str, runs: list[UUID]) -> list[str]:
    found = await fetch(connection, CONTRADICTIONS)
    left = await fetch(connection, f'select message from pgmq."q_{queue}"')
    return [f"{row.run_id}: {row.what}" for row in found if row.run_id in runs] + [
        str(row.message) for row in left
    ]
