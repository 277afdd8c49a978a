"""Workers as the engine may meet them: quick and slow, of our protocol and of pgflow's, and mortal.

What a worker does next is drawn by a generator of its own; what a task's handler gives is the scenario's. A worker
dies only while every task in its hands may be lost without changing the run's end, since a loss counts as an attempt.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from tests.flow.model.deferrals import answer, defer
from tests.flow.model.graph import Graph, Step, plain
from tests.flow.model.oracle import error_of
from tests.flow.model.world import BACKDATE, Connection, Task, World, fetch, jsonb

IDLE_ROUNDS = 300
ROUNDS = 5000


@dataclass
class Hands:
    """A worker's name in the database and the tasks it has claimed, with their attempts (none told: pgflow's way)."""

    worker_id: UUID = field(default_factory=uuid4)
    held: dict[Task, int | None] = field(default_factory=dict)


class Worker:
    """Works until every run of its world has ended, or nothing has moved for too long."""

    def __init__(self, world: World, connection: Connection, seed: int) -> None:
        self._world = world
        self._connection = connection
        self._random = random.Random(seed)
        self._hands = Hands()
        self._dead: list[Hands] = []

    async def work(self) -> None:
        await self._register()
        for _ in range(ROUNDS):
            if self._world.finished or self._world.idle_rounds > IDLE_ROUNDS:
                break
            await self._round()
            await asyncio.sleep(0)

    async def _round(self) -> None:
        roll = self._random.random()
        held = self._hands.held
        if self._world.unstarted and roll < 0.3:
            await self._start()
        elif self._world.deferred and roll < 0.4:
            await answer(self._world, self._connection, self._random)
        elif self._dead and roll < 0.5:
            await self._bury(self._dead.pop())
        elif not held or roll < 0.6:
            if not await self._claim() and not held:
                await self._idle()
        elif roll < 0.7 and all(map(self._world.may_be_lost, held)):
            await self._die()
        else:
            self._world.idle_rounds = 0
            await self._handle()

    async def _ask(self, statement: str, *params: Any) -> list[Any]:
        return await fetch(self._connection, statement, *params)

    async def _register(self) -> None:
        await self._ask(
            "select pgflow.heartbeat(%s, %s, 'test', interval '60 seconds')",
            *(self._hands.worker_id, self._world.queues[0]),
        )

    async def _start(self) -> None:
        """Start one run, perhaps twice: the second time does nothing."""
        run_id = self._world.unstarted.pop()
        run = self._world.runs[run_id]
        given = jsonb(run.scenario.input)
        if self._random.random() < 0.4:
            await self._ask("select run_id from pgflow.start_flow(%s, %s, %s)", run.flow.slug, given, run_id)
            return
        for created in (True, False)[: self._random.randint(1, 2)]:
            [row] = await self._ask(
                "select run_id, created from pgflow.start_flows(%s, array[%s]::jsonb[], array[%s]::uuid[])",
                *(run.flow.slug, given, run_id),
            )
            if (row.run_id, row.created) != (run_id, created):
                self._world.complaints.append(f"run {run_id}: start_flows gave {row}")

    async def _claim(self) -> bool:
        """Claim a few tasks: by reading the queue and starting what it names, or in one call."""
        size = self._random.randint(1, 4)
        if self._random.random() < 0.4:
            return await self._claim_as_pgflow(size)
        rows = await self._ask(
            "select * from pgflow.claim_tasks(%s, %s, %s)",
            self._world.queues,
            self._hands.worker_id,
            size,
        )
        return self._take(rows)

    async def _claim_as_pgflow(self, size: int) -> bool:
        """With a visibility of 0 others read the same message: only one may get its task."""
        flow = self._random.choice(self._world.flows)
        read = await self._ask(
            "select msg_id from pgmq.read(%s, %s, %s)", flow.queue, self._random.choice([0, 30]), size
        )
        if self._random.random() < 0.3:
            await asyncio.sleep(0)
        rows = await self._ask(
            "select * from pgflow.start_tasks(%s, %s::bigint[], %s)",
            *(flow.slug, [row.msg_id for row in read], self._hands.worker_id),
        )
        for row in rows:
            task = (row.run_id, row.step_slug, row.task_index)
            self._hands.held[task] = None
            self._world.hold(self._hands.worker_id, task, row.input)
        self._world.idle_rounds *= not rows
        return bool(rows)

    def _take(self, rows: list[Any]) -> bool:
        claimed = [row for row in rows if row.outcome == "claimed"]
        for row in claimed:
            task = (row.run_id, row.step_slug, row.task_index)
            self._hands.held[task] = row.attempt
            self._world.hold(self._hands.worker_id, task, row.input)
        self._world.idle_rounds *= not claimed
        return bool(claimed)

    async def _idle(self) -> None:
        """Nothing to do: what keeps the engine going when nobody else does, and a look whether all is over."""
        self._world.idle_rounds += 1
        await self._ask("select * from pgflow.send_due_tasks(100)")
        if self._dead:
            await self._bury(self._dead.pop())
        if not self._world.unstarted:
            [row] = await self._ask(
                "select count(*) as ended from pgflow.runs where run_id = any (%s) and status <> 'started'",
                list(self._world.runs),
            )
            self._world.finished = row.ended == len(self._world.runs)

    async def _die(self) -> None:
        """Stop without a word; what comes next is another worker."""
        for task in self._hands.held:
            self._world.losses[task] += 1
        self._dead.append(self._hands)
        self._hands = Hands()
        await self._register()

    async def _bury(self, dead: Hands) -> None:
        """Its tasks are given back; then it turns out that it only slept, and may change nothing any more."""
        for task in dead.held:
            self._world.holders.pop(task, None)
        await self._ask("select pgflow.mark_worker_stopped(%s)", dead.worker_id)
        if self._random.random() < 0.6:
            await self._ask("select * from pgflow.recover_tasks()")
        else:
            await self._ask(BACKDATE, dead.worker_id)
            await self._ask("select pgflow.requeue_stalled_tasks()")
        await self._recover_fully(dead)
        late = [task for task, attempt in dead.held.items() if attempt is not None]
        if late:
            rows = await self._send_completions(dead, late, claim=0)
            refused = {
                (row.run_id, row.step_slug, row.task_index) for row in rows if row.outcome == "refused"
            }
            for task in set(late) - refused:
                self._world.complain(task, "a worker that had lost it could complete it")

    async def _recover_fully(self, dead: Hands) -> None:
        """Recovery passes by what is locked at the moment, so look again."""
        for _ in range(IDLE_ROUNDS):
            left = await self._ask(
                "select from pgflow.step_tasks where last_worker_id = %s and status = 'started'",
                dead.worker_id,
            )
            if not left:
                return
            await self._ask("select * from pgflow.recover_tasks()")
        self._world.complaints.append(f"worker {dead.worker_id} is dead, and its tasks were never given back")

    async def _handle(self) -> None:
        """Run the handlers of some of the tasks in hand, and say what came of them."""
        held = list(self._hands.held)
        tasks = self._random.sample(held, self._random.randint(1, len(held)))
        foreign = [task for task in tasks if self._hands.held[task] is None]
        ours = [task for task in tasks if self._hands.held[task] is not None]
        if self._random.random() < 0.1:
            foreign, ours = tasks, []
        for task in foreign:
            await self._end_as_pgflow(task)
        if ours and self._random.random() < 0.15:
            await self._defer(ours)
            return
        failing = [task for task in ours if self._world.fails_now(task)]
        good = [task for task in ours if task not in failing]
        if good and self._random.random() < 0.1:
            await self._release(good)
        elif good:
            await self._complete(good)
        if failing:
            await self._fail(failing)

    async def _end_as_pgflow(self, task: Task) -> None:
        del self._hands.held[task]
        self._world.holders.pop(task, None)
        if self._world.fails_now(task):
            self._world.failures[task] += 1
            await self._ask("select * from pgflow.fail_task(%s, %s, %s, %s)", *task, error_of(*task[1:]))
        else:
            output = jsonb(self._world.plan(task).output)
            await self._ask("select * from pgflow.complete_task(%s, %s, %s, %s)", *task, output)

    async def _complete(self, tasks: list[Task]) -> None:
        rows = await self._send_completions(self._hands, tasks, claim=self._random.choice([0, 1, 2, 5]))
        for task in tasks:
            del self._hands.held[task]
        await self._check_refusals([row for row in rows if row.outcome == "refused"])
        self._take(rows)

    async def _send_completions(self, hands: Hands, tasks: list[Task], claim: int) -> list[Any]:
        if hands is self._hands:
            for task in tasks:
                self._world.holders.pop(task, None)
        return await self._ask(
            """select * from pgflow.complete_tasks(%s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::jsonb[],
                 p_claim => %s, p_then => %s::jsonb[])""",
            *(hands.worker_id, *_columns(hands, tasks)),
            *([jsonb(self._world.plan(task).output) for task in tasks], claim),
            [self._behind(task) for task in tasks],
        )

    def _behind(self, task: Task) -> Any:
        """The steps behind a task that its worker ran in the same go, sometimes."""
        chain: list[dict[str, Any]] = []
        run_id, slug, _ = task
        graph = self._world.runs[run_id].flow.graph
        while self._random.random() < 0.6:
            children = graph.children(slug)
            if graph.step(slug).kind == "map" or [child.deps for child in children] != [(slug,)]:
                break
            [child] = children
            plan = self._world.plan((run_id, child.slug, 0))
            if plan.errors or not _is_pure(graph, child):
                break
            chain.append({"step": child.slug, "output": plain(plan.output)})
            self._world.chained.add((run_id, child.slug))
            slug = child.slug
        return jsonb(chain) if chain else None

    async def _fail(self, tasks: list[Task]) -> None:
        hands, world = self._hands, self._world
        for task in tasks:
            world.holders.pop(task, None)
            world.failures[task] += 1
        rows = await self._ask(
            """select * from pgflow.fail_tasks(%s, %s::uuid[], %s::text[], %s::int[], %s::int[], %s::text[],
                 %s::bool[], %s::float8[])""",
            *(hands.worker_id, *_columns(hands, tasks), [error_of(slug, index) for _, slug, index in tasks]),
            [world.is_doomed(task) and self._random.random() < 0.3 for task in tasks],
            [self._random.choice([None, 0.0]) for _ in tasks],
        )
        for task in tasks:
            del hands.held[task]
        await self._check_refusals([row for row in rows if row.outcome == "refused"])

    async def _release(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._world.holders.pop(task, None)
        await self._ask(
            """select * from pgflow.release_tasks(%s, %s::uuid[], %s::text[], %s::int[], %s::int[],
                 array_fill(0::float8, array[%s]))""",
            *(self._hands.worker_id, *_columns(self._hands, tasks), len(tasks)),
        )
        for task in tasks:
            del self._hands.held[task]

    async def _check_refusals(self, rows: list[Any]) -> None:
        for row in rows:
            await self._world.check_refusal(self._connection, (row.run_id, row.step_slug, row.task_index))

    async def _defer(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._world.holders.pop(task, None)
        attempts = [self._hands.held.pop(task) for task in tasks]
        await defer(self._world, self._connection, self._hands.worker_id, tasks, attempts)


def _is_pure(graph: Graph, step: Step) -> bool:
    """Whether a step may follow in one go: single, without a condition, and before no map."""
    conditional = step.required is not None or step.forbidden is not None
    return (
        step.kind == "single"
        and not conditional
        and all(child.kind == "single" for child in graph.children(step.slug))
    )


def _columns(hands: Hands, tasks: list[Task]) -> tuple[list[Any], ...]:
    attempts = [hands.held[task] for task in tasks]
    return [task[0] for task in tasks], [task[1] for task in tasks], [task[2] for task in tasks], attempts
