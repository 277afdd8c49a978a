"""awa: its Rust core dispatches, woken by LISTEN; jobs go in by COPY. It keeps no results, so the handler does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from awa import AsyncClient, Job

from benchmarks.peers.programs import talk
from benchmarks.peers.programs.talk import Task, Waiting

_QUEUE = "ask"
_CONNECTIONS = 10


def _client(task: Task) -> AsyncClient:
    # Its driver insists on a host there, although it then takes the one that is named as a socket.
    return AsyncClient(task.url.replace("@/", "@localhost/"), max_connections=_CONNECTIONS)


@dataclass
class Ask:
    number: int
    body: str


class Program:
    async def prepare(self, task: Task) -> None:
        await _client(task).migrate()
        await talk.make_answers(task)

    @asynccontextmanager
    async def worker(self, task: Task) -> AsyncIterator[None]:
        async with talk.storing(task) as (vendor, answers):
            client = _client(task)

            @client.task(Ask, queue=_QUEUE)
            async def ask(job: Job[Ask]) -> None:
                await answers.store(job.args.number, await vendor.ask(job.args.body))

            await client.start([{"name": _QUEUE, "max_workers": task.concurrency, "claim_batch_size": 500}])
            try:
                yield
            finally:
                await client.shutdown()

    @asynccontextmanager
    async def caller(self, task: Task) -> AsyncIterator[_Caller]:
        async with talk.waiting(task) as answers:
            yield _Caller(task, _client(task), answers)


class _Caller:
    def __init__(self, task: Task, client: AsyncClient, answers: Waiting) -> None:
        self._task = task
        self._client = client
        self._answers = answers

    def _ask(self, number: int) -> Ask:
        return Ask(number, self._task.body(number))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._client.enqueue_many_copy([self._ask(number) for number in numbers], queue=_QUEUE)

    async def enqueue(self, number: int) -> None:
        await self._client.insert(self._ask(number), queue=_QUEUE)

    async def call(self, number: int) -> str:
        return await self._answers.answer(number, lambda: self.enqueue(number))


if __name__ == "__main__":
    asyncio.run(talk.play(Program(), *talk.arguments()))
