"""A client that does at random what workers, pollers and operators do, all to the same few runs."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from tests.flow.model.world import BACKDATE, Connection, Flow, Task, fetch

WIDTH = 6


def output_of(task: Task) -> Any:
    return list(range(WIDTH)) if task[1] == "first" else task[2]


class Client:
    """One connection that does at random what clients, workers, pollers and operators do."""

    def __init__(self, connection: Connection, flow: Flow, runs: list[UUID], seed: int) -> None:
        self.did: Counter[str] = Counter()
        self._connection = connection
        self._slug = flow.slug
        self._queue = flow.queue
        self._runs = runs
        self._random = random.Random(seed)
        self._worker_id = uuid4()
        self._held: dict[Task, int] = {}
        self._tokens: list[UUID] = []
        self._wrong = 0.1  # outputs that are no array, though a map is to be made of one

    async def act(self, rounds: int) -> None:
        actions = {
            self.claim: 6, self.complete: 8, self.complete_chosen: 2, self.fail: 3, self.release: 2, self.defer: 2,
            self.complete_deferred: 2, self.fail_deferred: 1, self.expire: 1, self.cancel: 1, self.retry: 3,
            self.be_recovered: 1, self.stall: 1, self.send_due: 2, self.end_as_pgflow: 3,
            self.claim_as_pgflow: 3, self.condition: 1,
            self.skip: 1, self.start: 1, self.progress: 3,
        }  # fmt: skip
        await self.register()
        await self.start()
        for action in self._random.choices(list(actions), list(actions.values()), k=rounds):
            done = await action()
            self.did[action.__name__] += done
            await asyncio.sleep(0)

    async def ask(self, statement: str, *params: Any) -> list[Any]:
        return await fetch(self._connection, statement, *params)

    async def register(self) -> int:
        await self.ask("select pgflow.heartbeat(%s, %s, 'test', '60 seconds')", self._worker_id, self._queue)
        return 1

    async def claim(self, limit: int = 20) -> int:
        rows = await self.ask(
            "select * from pgflow.claim_tasks(array[%s], %s, %s)", self._queue, self._worker_id, limit
        )
        return self._take(rows)

    def _take(self, rows: list[Any]) -> int:
        claimed = [row for row in rows if row.outcome == "claimed"]
        self._held |= {(row.run_id, row.step_slug, row.task_index): row.attempt for row in claimed}
        return len(claimed)

    def _give(self, portion: float = 0.7) -> tuple[list[UUID], list[str], list[int], list[int]]:
        """Columns of some of the tasks in hand, shuffled; they are in hand no more."""
        tasks = self._random.sample(list(self._held), k=int(len(self._held) * portion + 0.9))
        attempts = [self._held.pop(task) for task in tasks]
        return [task[0] for task in tasks], [task[1] for task in tasks], [task[2] for task in tasks], attempts

    async def complete(self) -> int:
        columns = self._give()
        wrong = self._random.random() < self._wrong
        outputs = [Jsonb(7 if wrong else output_of(task)) for task in zip(*columns[:3], strict=True)]
        rows = await self.ask(
            """select * from pgflow.complete_tasks(%s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::jsonb[],
                 p_claim => %s)""",
            *(self._worker_id, *columns, outputs, self._random.choice([0, 10])),
        )
        self._take(rows)
        refused = [row for row in rows if row.outcome == "refused"]
        self.did["refused"] += len(refused)
        return len(outputs) - len(refused)

    async def complete_chosen(self) -> int:
        """Complete what another may just be ending: any started task, in the name of whoever has it."""
        rows = await self.ask(
            """select last_worker_id, run_id, step_slug, task_index, attempts_count from pgflow.step_tasks
               where status = 'started' and last_worker_id is not null and run_id = any (%s)
               order by random() limit 8""",
            self._runs,
        )
        for worker_id in {row.last_worker_id for row in rows}:
            chosen = [row for row in rows if row.last_worker_id == worker_id]
            await self.ask(
                """select * from pgflow.complete_tasks(
                     %s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::jsonb[])""",
                *(worker_id, [row.run_id for row in chosen], [row.step_slug for row in chosen]),
                *([row.task_index for row in chosen], [row.attempts_count for row in chosen]),
                [Jsonb(output_of(row[1:4])) for row in chosen],
            )
        return len(rows)

    async def fail(self) -> int:
        columns = self._give(0.3)
        count = len(columns[0])
        rows = await self.ask(
            """select * from pgflow.fail_tasks(
                 %s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::text[], %s::bool[], %s::float8[])""",
            *(self._worker_id, *columns, ["boom"] * count),
            [self._random.random() < 0.2 for _ in range(count)],
            [self._random.choice([None, 0.0, 0.001]) for _ in range(count)],
        )
        return len([row for row in rows if row.outcome != "refused"])

    async def release(self) -> int:
        columns = self._give(0.3)
        rows = await self.ask(
            "select * from pgflow.release_tasks(%s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::float8[])",
            *(self._worker_id, *columns, [self._random.choice([0.0, 0.001]) for _ in columns[0]]),
        )
        return len(rows)

    async def defer(self) -> int:
        columns = self._give(0.4)
        tokens = [uuid4() for _ in columns[0]]
        self._tokens += tokens
        rows = await self.ask(
            """select * from pgflow.defer_tasks(%s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::uuid[],
                 array_fill(now() + %s, array[%s]), array_fill('{"kind": "test"}'::jsonb, array[%s]))""",
            *(self._worker_id, *columns, tokens),
            *(self._random.choice(["-1 s", "1 day"]), len(tokens), len(tokens)),
        )
        return len(rows)

    async def complete_deferred(self) -> int:
        self._random.shuffle(self._tokens)
        given, self._tokens = self._tokens[:6], self._tokens[6:]
        rows = await self.ask(
            "select * from pgflow.complete_deferred(%s::uuid[], array_fill('[0, 1]'::jsonb, array[%s]))",
            given,
            len(given),
        )
        return len(rows)

    async def fail_deferred(self) -> int:
        self._random.shuffle(self._tokens)
        given, self._tokens = self._tokens[:2], self._tokens[2:]
        rows = await self.ask(
            "select * from pgflow.fail_deferred(%s::uuid[], %s)", given, ["boom"] * len(given)
        )
        return len(rows)

    async def expire(self) -> int:
        [row] = await self.ask("select pgflow.expire_deferred(20) as count")
        return int(row.count)

    async def cancel(self) -> int:
        [row] = await self.ask("select pgflow.cancel_run(%s) as done", self._random.choice(self._runs))
        return int(row.done)

    async def retry(self) -> int:
        [row] = await self.ask("select pgflow.retry_run(%s) as done", self._random.choice(self._runs))
        return int(row.done)

    async def be_recovered(self) -> int:
        """Die, be found dead, and come back as another."""
        held = len(self._held)
        await self.ask("select pgflow.mark_worker_stopped(%s)", self._worker_id)
        await self.ask("select * from pgflow.recover_tasks()")
        self._held, self._worker_id = {}, uuid4()
        await self.register()
        return held

    async def stall(self) -> int:
        """Stop, with tasks that began long ago."""
        held = len(self._held)
        await self.ask(BACKDATE, self._worker_id)
        await self.ask("select pgflow.mark_worker_stopped(%s)", self._worker_id)
        await self.ask("select pgflow.requeue_stalled_tasks()")
        self._held, self._worker_id = {}, uuid4()
        await self.register()
        return held

    async def send_due(self) -> int:
        [row] = await self.ask("select sent from pgflow.send_due_tasks(100)")
        return int(row.sent)

    async def end_as_pgflow(self) -> int:
        """By the contract's own functions, one task a call."""
        for task in list(zip(*self._give(0.2)[:3], strict=True)):
            if self._random.random() < 0.7:
                await self.ask(
                    "select * from pgflow.complete_task(%s, %s, %s, %s)", *task, Jsonb(output_of(task))
                )
            else:
                await self.ask("select * from pgflow.fail_task(%s, %s, %s, 'boom')", *task)
        return 1

    async def claim_as_pgflow(self) -> int:
        """What others read at the same time, too."""
        read = await self.ask("select msg_id from pgmq.read(%s, 0, 10)", self._queue)
        ids = [row.msg_id for row in read]
        self._random.shuffle(ids)
        started = await self.ask(
            "select run_id, step_slug, task_index from pgflow.start_tasks(%s, %s::bigint[], %s)",
            *(self._slug, ids, self._worker_id),
        )
        for row in started:
            [task] = await self.ask(
                "select attempts_count from pgflow.step_tasks where (run_id, step_slug, task_index) = (%s, %s, %s)",
                *row,
            )
            self._held[tuple(row)] = task.attempts_count
        return len(started)

    async def progress(self) -> int:
        told = 0
        for task, attempt in list(self._held.items())[:3]:
            [row] = await self.ask(
                "select pgflow.report_progress(%s, %s, %s, %s, %s, '1') as ours",
                self._worker_id,
                *task,
                attempt,
            )
            told += int(row.ours)
        return told

    async def skip(self) -> int:
        slug = self._random.choice(["wide", "wider", "left", "beside"])
        await self.ask(
            "select pgflow._cascade_force_skip_steps(%s, %s, 'condition_unmet')",
            self._random.choice(self._runs),
            slug,
        )
        return 1

    async def start(self) -> int:
        """Runs that were started before, and some that others start at this moment."""
        runs = self._random.sample(self._runs, len(self._runs))
        rows = await self.ask(
            "select * from pgflow.start_flows(%s, array_fill('{}'::jsonb, array[%s]), %s::uuid[])",
            *(self._slug, len(runs), runs),
        )
        return sum(int(row.created) for row in rows)

    async def condition(self) -> int:
        """The contract's cascades, called from outside."""
        run_id = self._random.choice(self._runs)
        await self.ask("select pgflow.cascade_resolve_conditions(%s)", run_id)
        await self.ask("select pgflow.start_ready_steps(%s)", run_id)
        await self.ask("select pgflow.maybe_complete_run(%s)", run_id)
        return 1

    async def finish(self) -> None:
        """Complete all that is left, alone: deferred tasks and those of whoever went away, too."""
        self._wrong = 0.0
        for _ in range(200):
            await self.ask(
                "select pgflow.mark_worker_stopped(worker_id) from pgflow.workers where worker_id <> %s",
                self._worker_id,
            )
            await self.ask("select * from pgflow.recover_tasks()")
            await self.ask(
                "update pgflow.step_tasks set deferred_until = now() - interval '1 s' where deferred_until is not null"
            )
            await self.expire()
            await self.send_due()
            await self.ask(
                f'update pgmq."q_{self._queue}" set vt = now()'
            )  # those that wait for their time, too
            while await self.claim(100) or self._held:
                while self._held:
                    await self.complete()
            await self.ask("select pgflow.maybe_complete_run(run_id) from unnest(%s) as run_id", self._runs)
            if not await self.ask(
                "select from pgflow.runs where status = 'started' and run_id = any (%s)", self._runs
            ):
                return
