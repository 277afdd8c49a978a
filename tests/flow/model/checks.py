"""What must be so once every run has ended: the tables, the ledger of changes and the events, beside the model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from tests.flow.model.graph import ABSENT, Graph, TaskPlan, plain, text
from tests.flow.model.oracle import Outcome, StepEnd
from tests.flow.model.world import Connection, World, fetch

RUNS = "select r.*, r.output::text as output_text from pgflow.runs r where run_id = any (%s)"
STEPS = "select s.*, s.output::text as output_text from pgflow.step_states s where run_id = any (%s)"
TASKS = "select t.*, t.output::text as output_text from pgflow.step_tasks t where run_id = any (%s)"
CHANGES = "select * from ledger.changes where run_id = any (%s) order by id"
EVENTS = "select * from realtime.messages where run_id = any (%s) order by id"
LOST = ("worker", "stalled", "lease")
FINAL = {"completed", "failed", "skipped"}


class Rows:
    """All that the database says of some runs, by run."""

    def __init__(self) -> None:
        self.runs: dict[UUID, Any] = {}
        self.steps: dict[UUID, dict[str, Any]] = defaultdict(dict)
        self.tasks: dict[UUID, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        self.changes: dict[UUID, list[Any]] = defaultdict(list)
        self.events: dict[UUID, list[Any]] = defaultdict(list)

    @classmethod
    async def read(cls, connection: Connection, run_ids: list[UUID]) -> Rows:
        rows = cls()
        for row in await fetch(connection, RUNS, run_ids):
            rows.runs[row.run_id] = row
        for row in await fetch(connection, STEPS, run_ids):
            rows.steps[row.run_id][row.step_slug] = row
        for row in await fetch(connection, TASKS, run_ids):
            rows.tasks[row.run_id][row.step_slug].append(row)
        for row in await fetch(connection, CHANGES, run_ids):
            rows.changes[row.run_id].append(row)
        for row in await fetch(connection, EVENTS, run_ids):
            rows.events[row.run_id].append(row)
        return rows


async def complaints(world: World, connection: Connection) -> list[str]:
    """Everything that is not as the model and the contract have it; nothing, if all is well."""
    found = list(world.complaints)
    rows = await Rows.read(connection, list(world.runs))
    for run_id in world.runs:
        for what in _of_run(world, rows, run_id):
            found.append(f"run {run_id}: {what}")
    for queue in world.queues:
        left = await fetch(connection, f'select message from pgmq."q_{queue}"')
        found += [f"left on the queue: {row.message}" for row in left]
    return found


def _of_run(world: World, rows: Rows, run_id: UUID) -> Iterator[str]:
    run, steps = rows.runs.get(run_id), rows.steps[run_id]
    graph, outcome = world.runs[run_id].flow.graph, world.runs[run_id].outcome
    if run is None:
        yield "was never stored"
        return
    if run.status == "started":
        yield "did not end"
        return
    if run.status != outcome.status:
        yield f"{run.status}, should be {outcome.status}"
        return
    if not _is(run.output_text, outcome.output, absent_as_null=False):
        yield f"output {run.output_text}, should be {outcome.output!r}"
    open_steps = sum(row.status not in ("completed", "skipped") for row in steps.values())
    if run.remaining_steps != open_steps:
        yield f"remaining_steps {run.remaining_steps}, but {open_steps} steps are neither completed nor skipped"
    if run.status == "failed":
        yield from _of_culprits(graph, outcome, steps)
    for slug, row in steps.items():
        for what in _of_step(world, outcome, row, rows.tasks[run_id][slug], run.status):
            yield f"{slug}: {what}"
    yield from _of_changes(rows.changes[run_id])
    yield from _of_events(world, run, steps, rows.events[run_id])


def _of_culprits(graph: Graph, outcome: Outcome, steps: dict[str, Any]) -> Iterator[str]:
    """One of the steps that could fail the run did, and what is above it had come to its end."""
    culprits = [
        slug
        for slug in outcome.culprits
        if steps[slug].status == "failed" and _is_own_error(outcome.steps[slug], steps[slug].error_message)
    ]
    reached = [
        slug
        for slug in culprits
        if all(steps[up].status in FINAL - {"failed"} for up in graph.ancestors(slug))
    ]
    if not reached:
        seen = {slug: (row.status, row.error_message) for slug, row in steps.items()}
        yield f"failed by none of {outcome.culprits}: {seen}"


def _is_own_error(end: StepEnd, message: str | None) -> bool:
    lost = end.exhausted and any(word in (message or "") for word in LOST)
    return message in end.errors or lost


def _of_step(world: World, outcome: Outcome, row: Any, tasks: list[Any], run_status: str) -> Iterator[str]:
    end = outcome.steps[row.step_slug]
    open_tasks = [task.task_index for task in tasks if task.status in ("queued", "started")]
    if open_tasks:
        yield f"{row.status}, with open tasks {open_tasks}"
    if row.status == "started":
        yield "is started still"
    if row.status in ("completed", "skipped") or run_status == "completed":
        if (row.status, row.skip_reason) != (end.status, end.skip_reason):
            yield f"{row.status} {row.skip_reason or ''}, should be {end.status} {end.skip_reason or ''}"
        elif not _is(row.output_text, end.output):
            yield f"output {row.output_text}, should be {end.output!r}"
    yield from _of_counters(world, row, tasks, end)
    for task in tasks:
        plan = world.plan((row.run_id, row.step_slug, task.task_index))
        if task.status == "completed" and not _is(task.output_text, plan.output):
            yield f"[{task.task_index}] output {task.output_text}, should be {plan.output!r}"
        yield from _of_attempts(world, row, task, plan)


def _of_attempts(world: World, row: Any, task: Any, plan: TaskPlan) -> Iterator[str]:
    step = world.step((row.run_id, row.step_slug, 0))
    allowed = step.max_attempts + task.requeued_count  # a stalled task goes back whatever its attempts
    if task.attempts_count > allowed:
        yield f"[{task.task_index}] took {task.attempts_count} attempts of {allowed}"
    if task.status == "completed" and plan.errors >= step.max_attempts:
        yield f"[{task.task_index}] completed, though its handler always fails"


def _of_counters(world: World, row: Any, tasks: list[Any], end: StepEnd) -> Iterator[str]:
    chained = (row.run_id, row.step_slug) in world.chained
    if row.status == "completed":
        if (row.remaining_tasks, row.remaining_deps, row.initial_tasks) != (0, 0, end.tasks):
            yield f"completed with counters {row.remaining_tasks, row.remaining_deps, row.initial_tasks}"
        indexes = sorted(task.task_index for task in tasks)
        if indexes != list(range(end.tasks)) and not (chained and not tasks):
            yield f"completed with tasks {indexes}, should be {end.tasks}"
    elif row.status == "skipped":
        count = len(tasks)
        if row.remaining_tasks is not None or count != (
            end.tasks if end.skip_reason == "handler_failed" else 0
        ):
            yield f"skipped with remaining_tasks {row.remaining_tasks} and {count} tasks"
    elif row.status == "created" and tasks:
        yield f"only created, but has {len(tasks)} tasks"


def _of_changes(changes: list[Any]) -> Iterator[str]:
    """What has come to its end never changes again."""
    first: dict[tuple[Any, ...], str | None] = {}
    last: dict[tuple[Any, ...], str] = {}
    for change in changes:
        key = (change.kind, change.step_slug, change.task_index, change.transaction)
        first.setdefault(key, change.was)
        last[key] = change.became
    for (kind, slug, index, _), became in last.items():
        was = first[kind, slug, index, _]
        if was in FINAL and was != became:
            yield f"{kind}: {slug}[{index}] went from {was} to {became}"


def _of_events(world: World, run: Any, steps: dict[str, Any], events: list[Any]) -> Iterator[str]:
    names = [event.event for event in events]
    place = {name: index for index, name in enumerate(names)}
    if len(place) != len(names):
        yield f"an event was sent twice: {names}"
    if not names or names[0] != "run:started" or names[-1] != f"run:{run.status}":
        yield f"events do not begin with run:started and end with run:{run.status}: {names}"
    for event in events:
        kind = event.event.split(":")
        payload = event.payload
        if payload.get("run_id") != str(run.run_id) or payload.get("status") != kind[-1]:
            yield f"event {event.event} carries {payload}"
        if payload.get("event_type") not in (event.event, f"{kind[0]}:{kind[-1]}"):
            yield f"event {event.event} carries {payload}"
        wanted = world.runs[run.run_id].outcome.steps[kind[1]].output if kind[0] == "step" else ABSENT
        if kind[-1] == "completed" and kind[0] == "step" and text(payload.get("output")) != text(wanted):
            yield f"event {event.event} carries the output {payload.get('output')!r}, should be {wanted!r}"
    for step in world.runs[run.run_id].flow.graph.steps:
        yield from _of_step_events(world, steps, step.slug, place)


def _of_step_events(world: World, steps: dict[str, Any], slug: str, place: dict[str, int]) -> Iterator[str]:
    """A step's start comes before its end, and what is above it ended before either."""
    row = steps[slug]
    start = place.get(f"step:{slug}:started")
    ends = [place[name] for kind in FINAL if (name := f"step:{slug}:{kind}") in place]
    if row.status in ("completed", "skipped") and f"step:{slug}:{row.status}" not in place:
        yield f"{slug} is {row.status}, and no event says so"
    if len(ends) > 1 or (start is not None and ends and ends[0] < start):
        yield f"{slug}: events out of order: started at {start}, ended at {ends}"
    chained = (row.run_id, slug) in world.chained
    if row.status == "completed" and (start is None) == bool(row.initial_tasks) and not chained:
        yield f"{slug}: completed with {row.initial_tasks} tasks, its step:started at {start}"
    first = min([*ends, *([] if start is None else [start])], default=None)
    parents = {dep: _end_of(dep, place) for dep in world.step((row.run_id, slug, 0)).deps}
    if first is None or not parents:
        return
    before = [dep for dep, at in parents.items() if at is not None and at < first]
    enough = any if row.skip_reason == "dependency_skipped" else all
    if not enough(dep in before for dep in parents):
        yield f"{slug}: an event at {first}, its parents ended at {parents}"


def _end_of(slug: str, place: dict[str, int]) -> int | None:
    return next((place[name] for kind in FINAL if (name := f"step:{slug}:{kind}") in place), None)


def _is(found: str | None, wanted: Any, *, absent_as_null: bool = True) -> bool:
    """Whether a column's text is this value; SQL's NULL is only that of which nothing was said."""
    if wanted is ABSENT:
        return found is None or (absent_as_null and found == "null")
    return found is not None and text(json.loads(found)) == text(plain(wanted))
