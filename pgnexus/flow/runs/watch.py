"""Beside a run: what happens in it, as events, in an order that is never against the graph's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.errors import UnknownRun
from pgnexus.flow.runs.status import RunEvent
from pgnexus.flow.runs.waiters import RunWaiters

_TERMINAL = ("completed", "failed", "skipped")


async def watch(
    db: Database, waiters: RunWaiters, run_id: UUID, *, poll_interval: float
) -> AsyncIterator[RunEvent]:
    """Every event of the run from its start on; ends after the one that ends the run."""
    told: set[tuple[str, str | None]] = set()
    with waiters.changes_of(run_id) as changed:
        while True:
            changed.clear()
            waiters.check(run_id)
            done = [step for kind, step in told if step is not None and kind != "step:started"]
            rows = await db.query("run_events", {"run_id": run_id, "told": done})
            if not rows:
                raise UnknownRun(f"run {run_id}: not stored here")
            for event in _events(rows):
                if (event.event_type, event.step) not in told:
                    told.add((event.event_type, event.step))
                    yield event
                    if event.ends_the_run:
                        return
            try:
                async with asyncio.timeout(poll_interval):
                    await changed.wait()
            except TimeoutError:
                pass


def _events(rows: list[Any]) -> list[RunEvent]:
    """All events that the rows of one run, one a step, speak of.

    Times are those of transactions, which may commit in another order than they began in: an event is moved
    behind those of the steps that its own depends on.
    """
    run = rows[0]
    keyed: list[tuple[datetime, int, int, RunEvent]] = []
    ended: dict[str, datetime] = {}

    def add(at: datetime, place: int, rank: int, kind: str, row: Any, payload: dict[str, Any]) -> None:
        step = row.step_slug if kind.startswith("step:") else None
        keyed.append((at, place, rank, RunEvent(kind, row.run_id, step, at, payload)))

    add(run.started_at, -1, 0, "run:started", run, {})
    for place, row in enumerate(rows):
        if row.step_slug is None or row.step_status == "created":
            continue
        at = max([run.started_at, *(ended[dep] for dep in row.depends_on if dep in ended)])
        # a step without tasks completes without having been started
        if row.step_started_at is not None and row.initial_tasks != 0:
            at = max(at, row.step_started_at)
            add(at, place, 0, "step:started", row, {"tasks": row.initial_tasks})
        if row.step_status in _TERMINAL:
            at = ended[row.step_slug] = max(at, row.step_ended_at)
            add(at, place, 1, f"step:{row.step_status}", row, _payload(row))
    keyed.sort(key=lambda entry: entry[:3])
    events = [event for *_, event in keyed]
    if run.status != "started":
        at = max(run.ended_at, keyed[-1][0])
        payload = {"output": run.output} if run.status == "completed" else {}
        events.append(RunEvent(f"run:{run.status}", run.run_id, None, at, payload))
    return events


def _payload(row: Any) -> dict[str, Any]:
    if row.step_status == "completed":
        return {"output": row.step_output}
    if row.step_status == "failed":
        return {"error_message": row.error_message}
    return {"skip_reason": row.skip_reason, "error_message": row.error_message}
