"""What an executor tells of runs: frozen pictures of what the database had when it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

RunState = Literal["started", "completed", "failed", "cancelled"]
StepState = Literal["created", "started", "completed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step of a run.

    ``tasks_total`` is None while it is not known yet; ``waits_for`` says what its tasks wait for while no
    worker has them ("signal", "llm"), ``progress`` what handlers told of themselves, by task.
    """

    slug: str
    kind: str
    depends_on: tuple[str, ...]
    status: StepState
    tasks_total: int | None
    tasks_done: int
    tasks_running: int
    attempts: int
    error: str | None
    skip_reason: str | None
    started_at: datetime | None
    ended_at: datetime | None
    waits_for: str | None
    waits_until: datetime | None
    progress: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in a list."""

    run_id: UUID
    flow: str
    status: RunState
    started_at: datetime
    ended_at: datetime | None
    steps_left: int
    error: str | None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run with its steps, dependencies first."""

    run_id: UUID
    flow: str
    status: RunState
    started_at: datetime
    ended_at: datetime | None
    steps_left: int
    error: str | None
    steps: tuple[StepStatus, ...]

    def step(self, slug: str) -> StepStatus:
        """The step of this slug; KeyError when there is none."""
        for step in self.steps:
            if step.slug == slug:
                return step
        raise KeyError(slug)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run: ``event_type`` is run:X or step:X, X what became of it.

    ``payload`` has the output of what completed, the error_message of what failed and the skip_reason of what
    was skipped.
    """

    event_type: str
    run_id: UUID
    step: str | None
    at: datetime
    payload: dict[str, Any]

    @property
    def ends_the_run(self) -> bool:
        return self.event_type in ("run:completed", "run:failed", "run:cancelled")


def summary_of(row: Any) -> RunSummary:
    return RunSummary(
        row.run_id, row.flow, row.status, row.started_at, row.ended_at, row.steps_left, row.error
    )


def status_of(rows: list[Any]) -> RunStatus:
    """The rows of one run, one a step, as one picture."""
    run = rows[0]
    steps = tuple(
        StepStatus(
            slug=row.step_slug,
            kind=row.kind,
            depends_on=tuple(row.depends_on),
            status=row.step_status,
            tasks_total=row.tasks_total,
            tasks_done=row.tasks_done,
            tasks_running=row.tasks_running,
            attempts=row.attempts,
            error=row.step_error,
            skip_reason=row.skip_reason,
            started_at=row.step_started_at,
            ended_at=row.step_ended_at,
            waits_for=row.waits_for,
            waits_until=row.waits_until,
            progress={int(index): told for index, told in (row.progress or {}).items()},
        )
        for row in rows
        if row.step_slug is not None
    )
    return RunStatus(
        run.run_id, run.flow, run.status, run.started_at, run.ended_at, run.steps_left, run.error, steps
    )
