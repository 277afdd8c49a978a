"""What `start` gives back: a run that is stored, to be asked after, waited for or steered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pgnexus.flow.runs.status import RunEvent, RunStatus

if TYPE_CHECKING:
    from pgnexus.flow.runs.executor import Executor


class RunHandle:
    """A stored run. A later process finds it again with ``executor.handle(run_id)``."""

    def __init__(self, executor: Executor, run_id: UUID, *, created: bool) -> None:
        self._executor = executor
        self.run_id = run_id
        self.created = created  # False: the same run had been started before

    def __repr__(self) -> str:
        return f"RunHandle({self.run_id})"

    async def status(self) -> RunStatus:
        """The run and its steps as they are now."""
        return await self._executor.status(self.run_id)

    async def result(self, *, timeout: float | None = None) -> Any:
        """Wait for the output, for ``timeout`` seconds at most; see `Executor.result`."""
        return await self._executor.result(self.run_id, timeout=timeout)

    def watch(self) -> AsyncIterator[RunEvent]:
        """Every event of the run from its start on; ends with the run."""
        return self._executor.watch(self.run_id)

    async def cancel(self) -> bool:
        """End the run as it is; False when it had ended before."""
        return await self._executor.cancel(self.run_id)

    async def retry(self) -> bool:
        """Run what failed once more; False when the run had not failed."""
        return await self._executor.retry(self.run_id)

    async def signal(self, step: str, payload: Any = None, *, task_index: int = 0) -> None:
        """Bring a step what it waits for; see `Executor.signal`."""
        await self._executor.signal(self.run_id, step, payload, task_index=task_index)
