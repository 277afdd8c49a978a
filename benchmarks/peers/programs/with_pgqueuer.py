"""pgqueuer: asyncpg pools, whole batches in and out, woken by LISTEN, on uvloop as its own command runs.

Its completions are committed a batch at a time or every 0.1 s; the answer is committed before, in the handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import uvloop
from pgqueuer import AsyncpgPoolDriver, Job, PgQueuer, Queries

from benchmarks.peers.programs import talk
from benchmarks.peers.programs.talk import Task, Waiting

_BATCH = 100  # jobs taken, and completions written, at once; its default of 10 is slower
_ENTRYPOINT = "ask"


class Program:
    async def prepare(self, task: Task) -> None:
        async with asyncpg.create_pool(task.url, min_size=1, max_size=2) as pool:
            await Queries(AsyncpgPoolDriver(pool)).install()
        await talk.make_answers(task)

    @asynccontextmanager
    async def worker(self, task: Task) -> AsyncIterator[None]:
        async with (
            asyncpg.create_pool(task.url, min_size=4, max_size=10) as pool,
            talk.storing(task) as (vendor, answers),
        ):
            queue = PgQueuer(AsyncpgPoolDriver(pool))

            @queue.entrypoint(_ENTRYPOINT)
            async def ask(job: Job) -> None:
                assert job.payload is not None
                number, _, body = job.payload.decode().partition(" ")
                await answers.store(int(number), await vendor.ask(body))

            # Without a limit, as is its default: one would cost a count of what runs with every batch.
            running = asyncio.create_task(queue.run(batch_size=_BATCH))
            try:
                yield
            finally:
                queue.shutdown.set()
                await running

    @asynccontextmanager
    async def caller(self, task: Task) -> AsyncIterator[_Caller]:
        async with (
            asyncpg.create_pool(task.url, min_size=4, max_size=10) as pool,
            talk.waiting(task) as answers,
        ):
            yield _Caller(task, Queries(AsyncpgPoolDriver(pool)), answers)


class _Caller:
    def __init__(self, task: Task, queries: Queries, answers: Waiting) -> None:
        self._task = task
        self._queries = queries
        self._answers = answers

    def _payload(self, number: int) -> bytes:
        return f"{number} {self._task.body(number)}".encode()

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        payloads: list[bytes | None] = [self._payload(number) for number in numbers]
        await self._queries.enqueue([_ENTRYPOINT] * len(payloads), payloads, [0] * len(payloads))

    async def enqueue(self, number: int) -> None:
        await self._queries.enqueue(_ENTRYPOINT, self._payload(number))

    async def call(self, number: int) -> str:
        return await self._answers.answer(number, lambda: self.enqueue(number))


if __name__ == "__main__":
    uvloop.run(talk.play(Program(), *talk.arguments()))
