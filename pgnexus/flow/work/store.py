"""Under worker and executor: the engine's SQL functions as typed calls, one statement each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from pgnexus.db.connection import Connection
from pgnexus.db.database import Database
from pgnexus.db.queries import load
from pgnexus.flow.work.claims import Completed, Deferred, Failed, Fence, Released

Outcome = Completed | Failed | Released | Deferred


class FlowStore:
    """The calls of one worker, or of an executor that runs nothing itself.

    ``patience`` is for how many seconds a transaction of it may hold tasks without a word from here: a process that
    freezes before it commits would keep them, and their runs, from everybody for ever.
    """

    def __init__(self, db: Database, worker_id: UUID, *, patience: float) -> None:
        self._db = db
        self._patience = patience
        self.worker_id = worker_id

    async def claim(self, queues: list[str], limit: int, handlers: list[str]) -> list[Any]:
        """Up to ``limit`` tasks from these queues, claimed for this worker."""
        params = {"queues": queues, "worker_id": self.worker_id, "limit": limit, "handlers": handlers}
        return await self._db.query("claim_tasks", params)

    async def complete(
        self,
        tasks: Sequence[Completed],
        *,
        claim: int,
        handlers: list[str],
        notify: bool,
        connection: Connection | None = None,
    ) -> list[Any]:
        """Rows 'refused', and up to ``claim`` tasks that became ready by this."""
        params = {
            **self._fences(tasks),
            "outputs": [task.output for task in tasks],
            "then": [task.then for task in tasks],
            "claim": claim,
            "handlers": handlers,
            "notify": notify,
        }
        if connection is None:
            return await self._db.query("complete_tasks", params)
        await self.limit_idle(connection, self._patience)
        cursor = await connection.execute(load("complete_tasks"), params)
        return await cursor.fetchall()

    async def fail(self, tasks: Sequence[Failed], *, notify: bool) -> list[Any]:
        """A row for each: 'retried', 'failed' or 'refused'."""
        params = {
            **self._fences(tasks),
            "errors": [task.error for task in tasks],
            "final": [task.final for task in tasks],
            "delays": [task.delay for task in tasks],
            "notify": notify,
        }
        return await self._db.query("fail_tasks", params)

    async def release(self, tasks: Sequence[Released]) -> list[Any]:
        """A row for each that was this worker's."""
        params = {**self._fences(tasks), "delays": [task.delay for task in tasks]}
        return await self._db.query("release_tasks", params)

    async def give_back(self, fences: Sequence[Fence], delay: float) -> None:
        """Release tasks of which only the fences are known."""
        runs, steps, indexes, attempts = (list(column) for column in zip(*fences, strict=True))
        params = {
            "worker_id": self.worker_id,
            "run_ids": runs,
            "steps": steps,
            "indexes": indexes,
            "attempts": attempts,
            "delays": [delay] * len(fences),
        }
        await self._db.query("release_tasks", params)

    async def defer(self, tasks: Sequence[Deferred], connection: Connection) -> dict[UUID, datetime]:
        """The tokens of those that were this worker's, and their deadlines by the database's clock."""
        params = {
            **self._fences(tasks),
            "tokens": [task.token for task in tasks],
            "seconds": [task.seconds for task in tasks],
            "details": [to_json({"kind": task.kind, "details": task.kept}).decode() for task in tasks],
        }
        await self.limit_idle(connection, self._patience)
        cursor = await connection.execute(load("defer_tasks"), params)
        return {row.token: row.deadline for row in await cursor.fetchall()}

    async def limit_idle(self, connection: Connection, seconds: float) -> None:
        """From here on the database ends the connection's transaction when it says nothing for so long."""
        await connection.execute(load("limit_idle"), {"seconds": seconds})

    async def held(self) -> list[Any]:
        """The tasks that the database takes for running here."""
        return await self._db.query("held_tasks", {"worker_id": self.worker_id})

    async def report(self, run_id: UUID, step: str, task_index: int, attempt: int, progress: str) -> bool:
        """Store how far a task has come; False when it is not this worker's any more."""
        params = {
            "worker_id": self.worker_id,
            "run_id": run_id,
            "step": step,
            "task_index": task_index,
            "attempt": attempt,
            "progress": progress,
        }
        [row] = await self._db.query("report_progress", params)
        return bool(row.reported)

    async def run_input(self, run_id: UUID) -> Any:
        """What the run was started with."""
        [row] = await self._db.query("run_input", {"run_id": run_id})
        return row.input

    def _fences(self, tasks: Sequence[Outcome]) -> dict[str, Any]:
        return {
            "worker_id": self.worker_id,
            "run_ids": [task.held.run_id for task in tasks],
            "steps": [task.held.step_slug for task in tasks],
            "indexes": [task.held.task_index for task in tasks],
            "attempts": [task.held.attempt for task in tasks],
        }
