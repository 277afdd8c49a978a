"""pgflow's protocol, one task a call: start_flow, read, and start_tasks and complete_task for each message."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from benchmarks.flow.cases import Portion
from benchmarks.flow.driver import Driver


class Protocol(Driver):
    """Part A of the contract as it stands; only the read may bring more than one message."""

    def _start(self, portion: Portion) -> None:
        for given in portion.inputs():
            self._run("start_flow", flow=self._flow, input=Jsonb(given))

    def _round(self) -> bool:
        messages = self._run("read", queue=self._queue, limit=self._batch)
        for (message,) in messages:
            self._task(message)
        return bool(messages)

    def _task(self, message: int) -> None:
        [task] = self._run("start_task", flow=self._flow, messages=[message], worker=self._worker)
        output = self._handlers[task.step_slug](task.input, task.flow_input)
        key = {"run": task.run_id, "step": task.step_slug, "index": task.task_index}
        [(status,)] = self._run("complete_task", **key, output=Jsonb(output))
        if status != "completed":
            raise RuntimeError(f"{key}: {status} instead of completed")
