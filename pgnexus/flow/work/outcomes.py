"""After every handler: what became of its task, stored in batches; the tasks behind it come back with the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import psycopg

from pgnexus.db.connection import Connection, is_data_fault
from pgnexus.db.database import Database
from pgnexus.db.notifier import Notifier
from pgnexus.errors import DatabaseUnavailable
from pgnexus.flow.define.later import Later
from pgnexus.flow.work.batches import Outbox
from pgnexus.flow.work.claims import Completed, Deferred, Failed, Held, Holdings, Released, describe
from pgnexus.flow.work.deferral import Kinds, Waiting
from pgnexus.flow.work.store import FlowStore
from pgnexus.messages import new_request_id
from pgnexus.printable import one_line

log = logging.getLogger(__name__)

RUNS_CHANNEL = "pgflow_runs"
TASKS_CHANNEL = "pgflow_tasks"
_MOST_FOLLOWERS = 1000  # that a call brings along
_UNSTORABLE = "its error, or the delay it asked for, cannot be stored; see the worker's log"
_FEW = 20  # tasks in a call after which this process need not wait for its own NOTIFY


class Refused(Exception):
    """A task was not this worker's any more: what was done in its transaction is to be rolled back."""


class Hears(Protocol):
    """Who is told of what the database answers."""

    def claimed(self, rows: list[Any]) -> None:
        """A completion brought these tasks along."""

    def room(self) -> None:
        """Slots came free."""

    def doubt(self) -> None:
        """A call broke off that may have claimed something."""

    def delayed(self) -> None:
        """Something was stored that is due later."""

    def stored(self, run_ids: Iterable[UUID]) -> None:
        """Something changed in these runs, which are few."""


class Outcomes:
    """The outcomes of one worker's tasks, on their way into the database; ``worker`` hears what comes back."""

    def __init__(
        self,
        db: Database,
        store: FlowStore,
        notifier: Notifier,
        holdings: Holdings,
        kinds: Kinds,
        handlers: list[str],
        worker: Hears,
    ) -> None:
        self._db = db
        self._store = store
        self._notifier = notifier
        self._holdings = holdings
        self._kinds = kinds
        self._handlers = handlers
        self._worker = worker
        self._idle = asyncio.Event()
        self._completed: Outbox[Completed] = Outbox(
            "completions", self._complete, self._refuse_output, size=_size
        )
        self._failed: Outbox[Failed] = Outbox("failures", self._fail, self._refuse_error, concurrency=1)
        self._released: Outbox[Released] = Outbox("releases", self._release, self._give_up, concurrency=1)
        self._deferred: Outbox[Deferred] = Outbox(
            "deferrals", self._defer, self._refuse_question, concurrency=1
        )

    def complete(self, held: Held, output: str, then: str | None) -> None:
        self._completed.put(Completed(held, output, then))

    def fail(self, held: Held, error: str, *, final: bool = False, delay: float | None = None) -> None:
        self._failed.put(Failed(held, error, final, delay))

    def release(self, held: Held, delay: float = 0.0) -> None:
        self._released.put(Released(held, delay))

    def defer(self, held: Held, later: Later) -> None:
        if later.kind not in self._kinds:
            return self.fail(held, f"StepFailed: nobody here asks for {later.kind!r}", final=True)
        self._deferred.put(self._later(held, later))
        return None

    def refused(self, held: Held) -> None:
        log.info("%s: attempt %d had been taken from this worker", held, held.attempt)
        self._ended([held])

    async def complete_in(self, connection: Connection, held: Held, output: str, claim: int) -> list[Any]:
        """Complete a task in a transaction of its own; raises `Refused`. Tell `committed` afterwards."""
        rows = await self._store.complete(
            [Completed(held, output, None)],
            claim=claim,
            handlers=self._handlers,
            notify=True,
            connection=connection,
        )
        if any(row.outcome == "refused" for row in rows):
            raise Refused
        return rows

    async def defer_in(self, connection: Connection, held: Held, later: Later) -> list[Any]:
        """Defer a task in a transaction of its own; raises `Refused`. Tell `committed` afterwards."""
        if not await self._ask(connection, [self._later(held, later)]):
            raise Refused
        return []

    def room_for_next(self) -> AbstractContextManager[int]:
        """The number of tasks to claim in the transaction of a task, into its slot; enter it around the whole."""
        return self._holdings.reserve(1, ending=1)

    def committed(self, held: Held, claimed: list[Any]) -> None:
        """The transaction of `complete_in` or `defer_in` is committed."""
        self._ended([held], claimed)
        self._look_ahead([held])

    async def drained(self, timeout: float) -> bool:
        """Wait until what became of everything that is held is stored; False when it is not in time."""
        if not self._holdings.held:
            return True
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def abandon(self) -> None:
        """Store nothing more."""
        for outbox in (self._completed, self._failed, self._released, self._deferred):
            outbox.abandon()

    async def _complete(self, tasks: list[Completed]) -> None:
        held = [task.held for task in tasks]
        notify = self._notifier.claim(RUNS_CHANNEL)
        with self._holdings.reserve(_MOST_FOLLOWERS, ending=len(tasks)) as claim:
            try:
                rows = await self._store.complete(tasks, claim=claim, handlers=self._handlers, notify=notify)
            except (DatabaseUnavailable, psycopg.Error) as error:
                if claim and not is_data_fault(error):
                    self._worker.doubt()
                raise
        if not notify:
            self._tell(held)
        if len(held) <= _FEW:
            self._worker.stored(one.run_id for one in held)
        claimed = [row for row in rows if row.outcome == "claimed"]
        if len(claimed) < len(rows):
            self._say_refused(rows)
        self._ended(held, claimed)
        self._look_ahead(held)

    async def _fail(self, tasks: list[Failed]) -> None:
        rows = await self._store.fail(tasks, notify=True)
        self._say_refused(rows)
        self._ended([task.held for task in tasks])
        self._worker.delayed()

    async def _release(self, tasks: list[Released]) -> None:
        await self._store.release(tasks)
        self._ended([task.held for task in tasks])
        self._worker.delayed()

    async def _defer(self, tasks: list[Deferred]) -> None:
        async with self._db.connection() as connection, connection.transaction():
            accepted = await self._ask(connection, tasks)
        if len(accepted) < len(tasks):
            for task in tasks:
                if task.token not in accepted:
                    log.info("%s: attempt %d had been taken from this worker", task.held, task.held.attempt)
        self._ended([task.held for task in tasks])
        self._worker.delayed()

    async def _ask(self, connection: Connection, tasks: list[Deferred]) -> dict[UUID, datetime]:
        accepted = await self._store.defer(tasks, connection)
        by_kind: dict[str, list[Waiting]] = {}
        for task in tasks:
            if task.token in accepted:
                waiting = _waiting(task, self._store.worker_id, accepted[task.token])
                by_kind.setdefault(task.kind, []).append(waiting)
        for name, alike in by_kind.items():
            await self._kinds[name].ask(connection, alike)
        return accepted

    def _later(self, held: Held, later: Later) -> Deferred:
        kind, details = self._kinds[later.kind], later.details
        seconds = later.seconds + kind.grace
        token = later.token or new_request_id()
        return Deferred(held, token, seconds, later.kind, details, kind.keeps(details))

    def doubt(self) -> None:
        """The transaction of `complete_in` broke off, and may have claimed something."""
        self._worker.doubt()

    def _ended(self, ended: Iterable[Held], claimed: list[Any] | None = None) -> None:
        self._holdings.held.difference_update(ended)
        if claimed:
            self._worker.claimed(claimed)
        if not self._holdings.held:
            self._idle.set()
        self._worker.room()

    def _look_ahead(self, held: list[Held]) -> None:
        if any(one.planned.leads_to_delay for one in held):
            self._worker.delayed()

    def _tell(self, held: list[Held]) -> None:
        self._notifier.committed(RUNS_CHANNEL, list({str(one.run_id) for one in held}))

    def _say_refused(self, rows: list[Any]) -> None:
        for row in rows:
            if row.outcome == "refused":
                where = (row.run_id, row.step_slug, row.task_index)
                log.info("run %s: step %s[%d] had been taken from this worker", *where)

    def _refuse_output(self, task: Completed, error: Exception) -> None:
        if task.then is not None:  # perhaps only what was run behind it
            self._completed.put(Completed(task.held, task.output, None))
        else:
            self.fail(task.held, describe(error), final=True)

    def _refuse_question(self, task: Deferred, error: Exception) -> None:
        self.fail(task.held, describe(error), final=True)

    def _refuse_error(self, task: Failed, error: Exception) -> None:
        if task.error == _UNSTORABLE:
            return self._give_up(task, error)
        log.error("%s: its error cannot be stored: %s", task.held, one_line(error))
        self._failed.put(Failed(task.held, _UNSTORABLE, task.final, None))
        return None

    def _give_up(self, task: Failed | Released, error: Exception) -> None:
        """Nothing more can be said of it here: once this worker is gone, another gets it."""
        log.error("%s: not given back: %s", task.held, one_line(error))
        self._ended([task.held])


def _size(task: Completed) -> int:
    return len(task.output) + len(task.then or "")


def _waiting(task: Deferred, worker_id: UUID, deadline: datetime) -> Waiting:
    held = task.held
    return Waiting(
        token=task.token,
        worker_id=worker_id,
        run_id=held.run_id,
        flow=held.planned.flow_name,
        step=held.step_slug,
        task_index=held.task_index,
        is_map=held.planned.step.is_map,
        details=task.details,
        deadline=deadline,
    )
