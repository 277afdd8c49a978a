"""The door to flows: start a run, wait for it, ask after it, steer it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Any, get_args
from uuid import UUID

import psycopg
from pydantic_core import to_json

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.errors import (
    InvalidRequest,
    NotWaiting,
    RunCancelled,
    RunFailed,
    RunPending,
    ServiceMisused,
    UnknownFlow,
    UnknownRun,
)
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.runs.handle import RunHandle
from pgnexus.flow.runs.starts import Starts
from pgnexus.flow.runs.status import RunEvent, RunState, RunStatus, RunSummary, status_of, summary_of
from pgnexus.flow.runs.waiters import RunWaiters
from pgnexus.flow.runs.watch import watch
from pgnexus.flow.schedules.schedule import Schedules
from pgnexus.flow.work.flows import Flows
from pgnexus.messages import new_request_id
from pgnexus.settings import Settings
from pgnexus.storable import check

FlowRef = Blueprint | str


class Executor:
    """Runs of flows over one `Database`; `pgnexus.executor` makes one with all it needs.

    A flow is given as the `Flow` itself, as what a `FlowBuilder` built, or by name: then the version that this
    process runs is started, else the newest that the database knows. ``schedules`` are what starts runs by the
    clock.
    """

    def __init__(
        self, db: Database, listener: Listener, notifier: Notifier, flows: Flows, settings: Settings
    ) -> None:
        self._db = db
        self._flows = flows
        self._settings = settings
        self._starts = Starts(db, notifier)
        self._running = False
        self.schedules = Schedules(db)
        self._waiters = RunWaiters(db, listener, poll_interval=settings.poll_interval)

    @property
    def database(self) -> Database:
        """What it works on."""
        return self._db

    def begin(self) -> None:
        """Take part; before that, and after `end`, every call raises `ServiceMisused`."""
        self._waiters.start()
        self._running = True

    async def end(self) -> None:
        """Start what was asked, then stop; nobody here is told how runs end any more."""
        self._running = False
        await self._starts.close()
        await self._waiters.stop()

    def changed(self, run_ids: Iterable[UUID]) -> None:
        """Something changed in these runs: look at once, whatever NOTIFY says of them later."""
        self._waiters.changed(map(str, run_ids))

    async def start(
        self, flow: FlowRef, input: Any = None, *, key: str | None = None, run_id: UUID | None = None
    ) -> RunHandle:
        """Start a run; it is stored when this returns.

        The same ``key``, or the same ``run_id``, with the same input starts once: the handle's ``created`` says
        whether it was this call. Raises `UnknownFlow`, `InvalidRequest` for an input that does not fit or for a
        key that was used with another one, `DatabaseUnavailable`.
        """
        return await self._start(flow, input, key, run_id)

    async def execute(
        self, flow: FlowRef, input: Any = None, *, timeout: float | None = None, key: str | None = None
    ) -> Any:
        """Start a run and wait for its output, for ``timeout`` seconds at most; the run goes on past them.

        Raises what `start` and `result` raise.
        """
        if key is not None:
            handle = await self._start(flow, input, key, None)
            return await self.result(handle.run_id, timeout=timeout)
        run_id = new_request_id()
        with self._waiters.end_of(run_id) as future:
            await self._start(flow, input, None, run_id)
            return await self._await(run_id, future, timeout)

    async def result(self, run_id: UUID, *, timeout: float | None = None) -> Any:
        """Wait for the run's output, for ``timeout`` seconds at most.

        Raises `RunFailed`, `RunCancelled`, `RunPending` when the wait is over, `UnknownRun`.
        """
        self._check_running()
        await self._flow_of(run_id)
        with self._waiters.end_of(run_id) as future:
            self._waiters.look(run_id)
            return await self._await(run_id, future, timeout)

    async def status(self, run_id: UUID) -> RunStatus:
        """The run and its steps as they are now; `UnknownRun` when there is none."""
        rows = await self._db.query("run_status", {"run_id": run_id})
        if not rows:
            raise _unknown(run_id)
        return status_of(rows)

    async def runs(
        self,
        flow: str | None = None,
        status: RunState | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> list[RunSummary]:
        """Runs, the latest first: of this flow, in this state, started in this time."""
        if status is not None and status not in get_args(RunState):
            raise InvalidRequest(f"status {status!r}: use one of {', '.join(get_args(RunState))}")
        for name, time in (("since", since), ("until", until)):
            if time is not None and time.tzinfo is None:
                raise InvalidRequest(f"{name}: {time} has no time zone; add one, such as datetime.UTC")
        params = {"flow": flow, "status": status, "since": since, "until": until, "limit": limit}
        return [summary_of(row) for row in await self._db.query("find_runs", params)]

    def handle(self, run_id: UUID) -> RunHandle:
        """A run that was started earlier, or elsewhere."""
        return RunHandle(self, run_id, created=False)

    async def watch(self, run_id: UUID) -> AsyncIterator[RunEvent]:
        """Every event of the run from its start on, those that were before at once; ends with the run."""
        self._check_running()
        async for event in watch(self._db, self._waiters, run_id, poll_interval=self._settings.poll_interval):
            yield event

    async def cancel(self, run_id: UUID) -> bool:
        """End the run as it is; False when it had ended before."""
        return await self._steer("cancel_run", run_id)

    async def retry(self, run_id: UUID) -> bool:
        """Run what failed once more, keeping what succeeded; False when the run had not failed."""
        return await self._steer("retry_run", run_id)

    async def signal(self, run_id: UUID, step: str, payload: Any = None, *, task_index: int = 0) -> None:
        """Bring a step what it waits for: its output. Raises `NotWaiting` when it does not wait."""
        flow = await self._flow_of(run_id)
        known = self._flows.find(flow, step)
        if known is not None:
            text = known.step.accept(payload)
        else:
            check(payload, "payload")
            text = to_json(payload).decode()
        params = {"run_id": run_id, "step": step, "payload": text, "task_index": task_index}
        try:
            await self._db.query("signal", params)
        except psycopg.Error as error:
            if error.sqlstate == "PN011":
                raise NotWaiting(str(error.diag.message_primary)) from error
            raise

    async def pause(self, flow: FlowRef) -> None:
        """Have nobody claim tasks of this flow until `resume`; what runs goes on."""
        await self._halt("pause_flow", flow)

    async def resume(self, flow: FlowRef) -> None:
        """The end of `pause`."""
        await self._halt("resume_flow", flow)

    async def _start(self, flow: FlowRef, input: Any, key: str | None, run_id: UUID | None) -> RunHandle:
        self._check_running()
        if key is not None and run_id is not None:
            raise InvalidRequest("give a key or a run_id, not both: a key stands for a run_id")
        slug, name, known = await self._flows.locate(flow)
        if known is not None:
            text = known.encode_input(input, self._settings.max_message_bytes)
        else:
            check(input, "input")
            text = to_json(input).decode()
        if key is not None:
            [row] = await self._db.query("run_id_for", {"flow": name, "key": key})
            run_id = row.run_id
        started = await self._starts.start(slug, text, run_id or new_request_id(), exact=known is not None)
        return RunHandle(self, started.run_id, created=started.created)

    def _check_running(self) -> None:
        if not self._running:
            raise ServiceMisused(
                "this Executor is not running: use it inside `async with pgnexus.executor(…)`"
            )

    async def _await(self, run_id: UUID, future: asyncio.Future[Any], timeout: float | None) -> Any:
        try:
            async with asyncio.timeout(timeout):
                row = await future
        except TimeoutError:
            raise RunPending(run_id, timeout or 0.0) from None
        if row.status == "cancelled":
            raise RunCancelled("cancelled", run_id=run_id)
        if row.status == "failed":
            raise RunFailed(row.error or "failed", run_id=run_id)
        known = self._flows.named(row.flow)
        return row.output if known is None else known.flow.decode_output(row.output)

    async def _flow_of(self, run_id: UUID) -> str:
        rows = await self._db.query("run_flow", {"run_id": run_id})
        if not rows:
            raise _unknown(run_id)
        return str(rows[0].flow)

    async def _steer(self, verb: str, run_id: UUID) -> bool:
        await self._flow_of(run_id)
        [row] = await self._db.query(verb, {"run_id": run_id})
        return bool(row[0])

    async def _halt(self, verb: str, flow: FlowRef) -> None:
        slug, _, _ = await self._flows.locate(flow)
        try:
            await self._db.query(verb, {"flow": slug})
        except psycopg.Error as error:
            if error.sqlstate == "PN010":
                raise UnknownFlow(str(error.diag.message_primary)) from error
            raise


def _unknown(run_id: UUID) -> UnknownRun:
    return UnknownRun(f"run {run_id}: not stored here")
