"""One drawn flow in a database: its runs, what is known of them, and what went wrong in the eyes of its workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from psycopg import AsyncConnection
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

from tests.flow.model.graph import ABSENT, Graph, Scenario, Step, TaskPlan, text
from tests.flow.model.oracle import Outcome, predict

# A worker's tasks began long ago. Who ends a run passes by tasks whose rows are held: so it must not end meanwhile.
BACKDATE = """
    update pgflow.step_tasks t set started_at = now() - interval '1 day', queued_at = now() - interval '1 day'
    from (
      select t.run_id, t.step_slug, t.task_index from pgflow.runs r join pgflow.step_tasks t using (run_id)
      where t.last_worker_id = %s and t.status = 'started'
      order by t.run_id for share of r for update of t skip locked
    ) h
    where t.run_id = h.run_id and t.step_slug = h.step_slug and t.task_index = h.task_index"""

Connection = AsyncConnection[Any]
Task = tuple[UUID, str, int]


def jsonb(value: Any) -> Jsonb | None:
    """A parameter: JSON's null for None, SQL's for ABSENT."""
    return None if value is ABSENT else Jsonb(value)


async def fetch(connection: Connection, statement: str, *params: Any) -> list[Any]:
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        await cursor.execute(statement, params or None)
        return await cursor.fetchall() if cursor.description else []


@dataclass
class Flow:
    """A graph as it is defined in the database."""

    graph: Graph
    slug: str = field(default_factory=lambda: f"flow_{uuid4().hex[:20]}")
    queue: str = ""

    async def define(self, connection: Connection) -> None:
        """Create the flow, with retries that wait for nothing."""
        await fetch(
            connection, "select pgflow.create_flow(%s, max_attempts => 7, base_delay => 0)", self.slug
        )
        for step in self.graph.steps:
            await fetch(
                connection,
                """select pgflow.add_step(%s, %s, %s::text[], max_attempts => %s, step_type => %s,
                     required_input_pattern => %s, forbidden_input_pattern => %s, when_unmet => %s,
                     when_exhausted => %s)""",
                *(self.slug, step.slug, list(step.deps), step.max_attempts, step.kind),
                *(None if pattern is None else Jsonb(pattern) for pattern in (step.required, step.forbidden)),
                *(step.when_unmet, step.when_exhausted),
            )
        [row] = await fetch(connection, "select queue_name from pgflow.flows where flow_slug = %s", self.slug)
        self.queue = row.queue_name


@dataclass
class Run:
    flow: Flow
    scenario: Scenario
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.outcome = predict(self.flow.graph, self.scenario)


@dataclass
class World:
    """What all workers of one example share. Its flows are worked on together, in the same batches."""

    flows: list[Flow]
    runs: dict[UUID, Run]
    holders: dict[Task, UUID] = field(default_factory=dict)
    failures: Counter[Task] = field(default_factory=Counter)
    losses: Counter[Task] = field(default_factory=Counter)
    chained: set[tuple[UUID, str]] = field(default_factory=set)
    deferred: dict[UUID, Task] = field(default_factory=dict)
    unstarted: list[UUID] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    idle_rounds: int = 0
    finished: bool = False

    def __post_init__(self) -> None:
        self.unstarted = list(self.runs)

    @property
    def queues(self) -> list[str]:
        return [flow.queue for flow in self.flows]

    def step(self, task: Task) -> Step:
        return self.runs[task[0]].flow.graph.step(task[1])

    def plan(self, task: Task) -> TaskPlan:
        run_id, step_slug, index = task
        return self.runs[run_id].scenario.plan(step_slug, index)

    def is_doomed(self, task: Task) -> bool:
        """Whether the task fails however often it is tried."""
        return self.plan(task).errors >= self.step(task).max_attempts

    def fails_now(self, task: Task) -> bool:
        return self.is_doomed(task) or self.failures[task] < self.plan(task).errors

    def may_be_lost(self, task: Task) -> bool:
        """Whether a worker may die with it: an attempt to spare, or none that counts. Few enough for a rescue each."""
        spare = self.step(task).max_attempts - self.plan(task).errors - 1 - self.losses[task]
        return self.losses[task] < 2 and (self.is_doomed(task) or spare > 0)

    def hold(self, worker_id: UUID, task: Task, given: Any) -> None:
        """A worker claimed the task: nobody else may have it, and its input must be the model's."""
        if task in self.holders:
            self.complain(task, "claimed while somebody else has it")
        self.holders[task] = worker_id
        run_id, step_slug, index = task
        inputs = self.runs[run_id].outcome.steps[step_slug].inputs
        if index >= len(inputs):
            self.complain(task, f"claimed, but the step has {len(inputs)} tasks")
        elif text(inputs[index]) != text(given):
            self.complain(task, f"input {given!r}, should be {inputs[index]!r}")

    async def check_refusal(self, connection: Connection, task: Task) -> None:
        """Whoever has a task is refused only what has ended without him."""
        [now] = await fetch(
            connection,
            """select r.status as run, s.status as step from pgflow.runs r join pgflow.step_states s using (run_id)
               where run_id = %s and step_slug = %s""",
            *task[:2],
        )
        if now.run == now.step == "started":
            self.complain(task, "refused to whoever has it, though it is under way")

    def complain(self, task: Task, what: str) -> None:
        run_id, step_slug, index = task
        self.complaints.append(f"run {run_id}: {step_slug}[{index}]: {what}")
