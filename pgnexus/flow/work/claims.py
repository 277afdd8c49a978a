"""Beside every handler: the tasks that this worker holds, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any
from uuid import UUID

from pgnexus.flow.doubt import Doubt
from pgnexus.flow.work.plans import PlannedStep
from pgnexus.storable import clean

LONGEST_ERROR = 4000  # characters

Fence = tuple[UUID, str, int, int]  # run, step, task index, attempt: what a worker may speak of


class Stop(Enum):
    """Why a handler is cancelled."""

    TIMED_OUT = 1
    GIVEN_BACK = 2  # this worker leaves, or was given up: then others may have it already


class Held:
    """One claimed task, from its claim until the database has what became of it."""

    __slots__ = (
        "attempt",
        "deadline",
        "flow_input",
        "flow_slug",
        "input",
        "planned",
        "run_id",
        "step_slug",
        "stop",
        "task",
        "task_index",
        "timeout",
    )

    def __init__(self, row: Any, planned: PlannedStep) -> None:
        _, self.flow_slug, self.run_id, self.step_slug, self.task_index, self.attempt, *given = row
        self.input, self.flow_input, self.timeout = given
        self.planned = planned
        self.task: asyncio.Task[None] | None = None  # in which its handler runs now
        self.deadline = 0.0
        self.stop: Stop | None = None

    def __str__(self) -> str:
        return f"run {self.run_id}: step {self.step_slug}[{self.task_index}]"

    @property
    def fence(self) -> Fence:
        return (self.run_id, self.step_slug, self.task_index, self.attempt)

    def begin(self, task: asyncio.Task[None] | None) -> None:
        """Its handler runs from now on, in this task."""
        self.task = task
        self.deadline = time.monotonic() + self.timeout

    def cancel(self, why: Stop) -> None:
        """Cancel its handler, if that runs; only the first reason counts."""
        if self.stop is None:
            self.stop = why
            if self.task is not None:
                self.task.cancel()


@dataclass(slots=True, eq=False)
class Completed:
    """It ended well; ``then`` is the chain of pure steps that was run behind it."""

    held: Held
    output: str
    then: str | None


@dataclass(slots=True, eq=False)
class Failed:
    """It did not; ``delay`` None is the step's own backoff."""

    held: Held
    error: str
    final: bool
    delay: float | None


@dataclass(slots=True, eq=False)
class Released:
    """It is given back; the attempt does not count."""

    held: Held
    delay: float


@dataclass(slots=True, eq=False)
class Deferred:
    """It waits for ``seconds`` for whoever has the token; ``kept`` are the details that its row has meanwhile."""

    held: Held
    token: UUID
    seconds: float
    kind: str
    details: Any
    kept: Any


class Holdings:
    """What this worker holds, never more than its slots; places in calls under way count as taken."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._reserved = 0
        self.held: set[Held] = set()
        self.open = True  # claims more, until this worker leaves
        self.doubt = Doubt()  # while a look is due, it is not known what the database takes for held here
        self.calls = 0  # that may bring claims

    @contextmanager
    def reserve(self, most: int, *, ending: int = 0) -> Iterator[int]:
        """How many tasks a call may claim that ends ``ending`` of those held; 0 when nothing is to be claimed."""
        free = self._slots - len(self.held) - self._reserved
        claim = max(0, min(most, free + ending)) if self.open and not self.doubt.is_due else 0
        more = max(0, claim - ending)  # than the slots that it makes free itself
        self._reserved += more
        self.calls += claim > 0
        try:
            yield claim
        finally:
            self._reserved -= more
            self.calls -= claim > 0


def describe(error: BaseException) -> str:
    """An exception as a task's error text: ``Type: message``, storable and not too long, whatever it does.

    >>> describe(ValueError("no\\x00 such thing"))
    'ValueError: no\ufffd such thing'
    """
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:
        message = "(its message cannot be had)"
    text, _ = clean(f"{name}: {message}" if message else name)
    return str(text) if len(text) <= LONGEST_ERROR else f"{text[: LONGEST_ERROR - 1]}…"
