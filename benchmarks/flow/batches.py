"""The engine's own functions, a batch a call: start_flows, claim_tasks, and complete_tasks that claims what follows."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.flow.cases import Portion
from benchmarks.flow.driver import Driver


class Batches(Driver):
    """Part B of the contract without the Python workers."""

    def __init__(self, url: str, shape: str, batch: int) -> None:
        super().__init__(url, shape, batch)
        self._tasks: list[Any] = []  # claimed by the last completion

    def _start(self, portion: Portion) -> None:
        inputs = [json.dumps(given) for given in portion.inputs()]
        for begin in range(0, len(inputs), self._batch):
            self._run("start_flows", flow=self._flow, inputs=inputs[begin : begin + self._batch])

    def _round(self) -> bool:
        tasks = self._tasks
        if len(tasks) < self._batch:
            free = self._batch - len(tasks)
            tasks += self._run("claim_tasks", queues=[self._queue], worker=self._worker, limit=free)
        if not tasks:
            return False
        self._tasks = self._run(
            "complete_tasks",
            worker=self._worker,
            runs=[task.run_id for task in tasks],
            steps=[task.step_slug for task in tasks],
            indexes=[task.task_index for task in tasks],
            attempts=[task.attempt for task in tasks],
            outputs=[self._output(task) for task in tasks],
            claim=self._batch,
        )
        refused = [task for task in self._tasks if task.outcome != "claimed"]
        if refused:
            raise RuntimeError(f"{len(refused)} tasks were refused, the first of them {refused[0]}")
        return True

    def _output(self, task: Any) -> str:
        return json.dumps(self._handlers[task.step_slug](task.input, task.flow_input))
