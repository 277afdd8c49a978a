"""DBOS: one workflow a request, whose output is the answer. Its queues are polled, and so are its results.

The call stands in the workflow itself: as a step of its own it would be stored twice, and a workflow of one call
that is cut off makes it again either way. A batch is enqueued in one transaction, as the library has no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions, WorkflowHandleAsync

from benchmarks.peers.programs import talk
from benchmarks.peers.programs.talk import Task, Vendor

_QUEUE = "asks"
_WORKFLOW = "ask"
_CONNECTIONS = 20  # its default; as many threads, for each holds a connection
_POLL = 0.01  # seconds between looks into the queue; the default of one would be most of a call's latency
_LOOK = 0.002  # seconds between looks for a result


def _config(task: Task) -> DBOSConfig:
    return {
        "name": "benchmark",
        "system_database_url": task.url,
        "sys_db_pool_size": _CONNECTIONS,
        "max_executor_threads": _CONNECTIONS,
        "db_engine_kwargs": {"pool_pre_ping": False},  # spares a round trip each time a connection is taken
        "log_level": "ERROR",
    }


class Program:
    async def prepare(self, task: Task) -> None:
        async with self._launched(task):
            pass

    @asynccontextmanager
    async def worker(self, task: Task) -> AsyncIterator[None]:
        async with self._launched(task):
            await DBOS.register_queue_async(
                _QUEUE, worker_concurrency=task.concurrency, polling_interval_sec=_POLL
            )
            yield

    @asynccontextmanager
    async def _launched(self, task: Task) -> AsyncIterator[None]:
        vendor = Vendor(task)
        DBOS(config=_config(task))

        @DBOS.workflow(name=_WORKFLOW)
        async def ask(body: str) -> str:
            return await vendor.ask(body)

        DBOS.launch()
        try:
            yield
        finally:
            await asyncio.to_thread(DBOS.destroy)
            await vendor.close()

    @asynccontextmanager
    async def caller(self, task: Task) -> AsyncIterator[_Caller]:
        engine = sa.create_engine(
            sa.make_url(task.url).set(drivername="postgresql+psycopg"), pool_size=_CONNECTIONS, max_overflow=0
        )
        client = DBOSClient(system_database_engine=engine, application_name="benchmark")
        try:
            yield _Caller(task, client, engine)
        finally:
            client.destroy()
            engine.dispose()


class _Caller:
    def __init__(self, task: Task, client: DBOSClient, engine: sa.Engine) -> None:
        self._task = task
        self._client = client
        self._engine = engine
        self._options: EnqueueOptions = {"workflow_name": _WORKFLOW, "queue_name": _QUEUE}

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await asyncio.to_thread(self._enqueue_many, numbers)

    def _enqueue_many(self, numbers: Sequence[int]) -> None:
        with self._engine.begin() as connection:
            for number in numbers:
                self._client.enqueue_in_transaction(connection, self._options, self._task.body(number))

    async def enqueue(self, number: int) -> None:
        await self._client.enqueue_async(self._options, self._task.body(number))

    async def call(self, number: int) -> str:
        handle: WorkflowHandleAsync[str] = await self._client.enqueue_async(
            self._options, self._task.body(number)
        )
        return await handle.get_result(polling_interval_sec=_LOOK)


if __name__ == "__main__":
    asyncio.run(talk.play(Program(), *talk.arguments()))
