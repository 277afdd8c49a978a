"""procrastinate: jobs deferred in batches, woken by LISTEN; it takes and finishes them one at a time, by design."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import procrastinate

from benchmarks.peers.programs import talk
from benchmarks.peers.programs.talk import Task, Waiting

_CONNECTIONS = 10
_TASK = "ask"


def _app(task: Task) -> procrastinate.App:
    connector = procrastinate.PsycopgConnector(
        conninfo=task.url, min_size=_CONNECTIONS, max_size=_CONNECTIONS
    )
    return procrastinate.App(connector=connector)


class Program:
    async def prepare(self, task: Task) -> None:
        async with _app(task).open_async() as app:
            await app.schema_manager.apply_schema_async()
        await talk.make_answers(task)

    @asynccontextmanager
    async def worker(self, task: Task) -> AsyncIterator[None]:
        async with talk.storing(task) as (vendor, answers), _app(task).open_async() as app:

            @app.task(name=_TASK)
            async def ask(number: int, body: str) -> None:
                await answers.store(number, await vendor.ask(body))

            # Done jobs are deleted, which spares their update; the answer is kept in a table of its own.
            running = asyncio.create_task(
                app.run_worker_async(
                    concurrency=task.concurrency, delete_jobs="successful", install_signal_handlers=False
                )
            )
            try:
                yield
            finally:
                running.cancel()
                await asyncio.wait([running])

    @asynccontextmanager
    async def caller(self, task: Task) -> AsyncIterator[_Caller]:
        async with talk.waiting(task) as answers, _app(task).open_async() as app:
            yield _Caller(task, app, answers)


class _Caller:
    def __init__(self, task: Task, app: procrastinate.App, answers: Waiting) -> None:
        self._task = task
        self._deferrer = app.configure_task(_TASK)
        self._answers = answers

    def _arguments(self, number: int) -> dict[str, Any]:
        return {"number": number, "body": self._task.body(number)}

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._deferrer.batch_defer_async(*(self._arguments(number) for number in numbers))

    async def enqueue(self, number: int) -> None:
        await self._deferrer.defer_async(**self._arguments(number))

    async def call(self, number: int) -> str:
        return await self._answers.answer(number, lambda: self.enqueue(number))


if __name__ == "__main__":
    logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it tells of each job otherwise
    asyncio.run(talk.play(Program(), *talk.arguments()))
