"""Any flow, run by several workers of which some die, ends as the model in tests/flow/model says.

`PGNEXUS_PROPERTY_EXAMPLES` draws that many flows, new ones each time, in place of the same few.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import TEMPLATE, Server
from tests.flow.model.checks import complaints
from tests.flow.model.drawing import graphs, scenarios
from tests.flow.model.graph import Graph, Scenario, Step, TaskPlan
from tests.flow.model.workers import Worker
from tests.flow.model.world import Connection, Flow, Run, World, fetch

EXAMPLES = int(os.environ.get("PGNEXUS_PROPERTY_EXAMPLES", "0"))
LEDGER = Path(__file__).parent / "model" / "ledger.sql"
WORKERS = 4


@dataclass
class Bench:
    """Connections for the workers and for looking on, used in one event loop."""

    runner: asyncio.Runner
    connections: list[Connection]


@pytest.fixture(scope="module")
def bench(server: Server) -> Iterator[Bench]:
    name = server.create(template=TEMPLATE)
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute(LEDGER.read_bytes())
    with asyncio.Runner() as runner:
        connections = [runner.run(_connect(server.url(name))) for _ in range(WORKERS + 1)]
        yield Bench(runner, connections)
        for connection in connections:
            runner.run(connection.close())
    server.drop(name)


async def _connect(url: str) -> Connection:
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


@pytest.mark.timeout(0 if EXAMPLES else 300)
@given(st.data())
@settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    phases=[
        Phase.generate
    ],  # a race does not come back while it is shrunk; the report has all that is known of it
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
def test_a_flow_ends_as_the_model_says(bench: Bench, data: st.DataObject) -> None:
    flows = [Flow(graph) for graph in data.draw(st.lists(graphs(), min_size=1, max_size=2), "graphs")]
    runs: dict[UUID, Run] = {}
    for _ in range(data.draw(st.integers(1, 5), "runs")):
        flow = data.draw(st.sampled_from(flows))
        runs[uuid4()] = Run(flow, data.draw(scenarios(flow.graph)))
    seeds = data.draw(st.lists(st.integers(0, 2**32), min_size=1, max_size=WORKERS), "seeds")
    bench.runner.run(_run(bench, World(flows, runs), seeds))


async def _run(bench: Bench, world: World, seeds: list[int]) -> None:
    onlooker, *connections = bench.connections
    for flow in world.flows:
        await flow.define(onlooker)
    async with asyncio.TaskGroup() as group:
        for seed, connection in zip(seeds, connections, strict=False):
            group.create_task(Worker(world, connection, seed).work())
    found = await complaints(world, onlooker)
    if found:
        pytest.fail("\n".join([*found, await _dump(onlooker, world)]))
    for flow in world.flows:
        await fetch(onlooker, "select pgflow.delete_flow_and_data(%s)", flow.slug)


TAMPERED = {
    "output": "update pgflow.step_states set output = '[]' where step_slug = 'each' and run_id = %s",
    "step:started at None": "delete from realtime.messages where event = 'step:each:started' and run_id = %s",
    "its parents ended": "update realtime.messages set id = default where event like '%%t:completed' and run_id = %s",
    "run:completed": "insert into realtime.messages (run_id, event, payload) values (%s, 'run:completed', '{}')",
    "open tasks": "update pgflow.step_tasks set status = 'queued' where step_slug = 'each' and run_id = %s",
    "went from completed": "update pgflow.step_tasks set status = 'failed' where step_slug = 'each' and run_id = %s",
    "remaining_steps": "update pgflow.runs set remaining_steps = 1 where run_id = %s",
}


@pytest.mark.parametrize("complaint", TAMPERED)
def test_a_run_that_ended_otherwise_is_seen(bench: Bench, complaint: str) -> None:
    flow = Flow(Graph((Step("list"), Step("each", ("list",), kind="map"))))
    run_id = uuid4()
    world = World([flow], {run_id: Run(flow, Scenario({}, {"list": (TaskPlan(output=[1, 2]),)}))})
    bench.runner.run(_run_and_tamper(bench, world, run_id, complaint))


async def _run_and_tamper(bench: Bench, world: World, run_id: UUID, complaint: str) -> None:
    onlooker, connection, *_ = bench.connections
    await world.flows[0].define(onlooker)
    await Worker(world, connection, seed=1).work()
    assert await complaints(world, onlooker) == []
    await fetch(onlooker, TAMPERED[complaint], run_id)
    assert complaint in "\n".join(await complaints(world, onlooker))


async def _dump(connection: Connection, world: World) -> str:
    """What an onlooker wants to see of runs that went wrong."""
    lines = [f"wanted: {pformat(world.runs)}"]
    for what, columns in {
        "runs": "run_id, status, remaining_steps, output",
        "step_states": """run_id, step_slug, status, skip_reason, remaining_deps, remaining_tasks, initial_tasks,
                          error_message, output""",
        "step_tasks": """run_id, step_slug, task_index, status, attempts_count, requeued_count, message_id,
                         not_before, last_worker_id, error_message, output""",
    }.items():
        rows = await fetch(
            connection,
            f"select {columns} from pgflow.{what} where run_id = any (%s) order by 1, 2",
            list(world.runs),
        )
        lines += [what, *map(str, rows)]
    return "\n".join(lines)
