"""One claimed task: its handler called, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import Any

from pydantic_core import from_json

from pgnexus.db.connection import Connection
from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable, RetryLater, StepFailed
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.later import Later
from pgnexus.flow.work.claims import Held, Stop, describe
from pgnexus.flow.work.outcomes import Outcomes, Refused
from pgnexus.flow.work.plans import PlannedStep
from pgnexus.flow.work.store import FlowStore
from pgnexus.settings import Settings

log = logging.getLogger(__name__)

_GRACE = 5.0  # seconds for a handler to be cancelled before the database ends its transaction


class _NoArray(Exception):
    """A transactional step gave a map something that is no array: its transaction is rolled back."""

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.output = output


class Handling:
    """Runs the handlers of a worker's steps; every task ends in exactly one outcome, or in none when it is lost."""

    def __init__(self, db: Database, store: FlowStore, outcomes: Outcomes, settings: Settings) -> None:
        self._db = db
        self._store = store
        self._outcomes = outcomes
        self._max_bytes = settings.max_message_bytes
        # the other connections are for what the worker says itself
        self._transactions = asyncio.Semaphore(max(1, settings.pool_size - 4))

    async def run(self, held: Held) -> None:
        """Call the handler of a task; raises nothing."""
        if held.stop is not None:  # before its turn came
            self._stopped(held)
            return
        planned = held.planned
        try:
            if planned.step.transactional:
                await self._transact(held)
                return
            value = await planned.step.call(held.input, held.flow_input, self._context(held, planned))
            if type(value) is Later:
                held.task = None
                self._outcomes.defer(held, value)
                return
            output = planned.step.encode(value, self._max_bytes)
            then = None if planned.then is None else await self._go_on(held, planned.then, output)
        except asyncio.CancelledError as error:
            held.task = None
            if held.stop is not None:
                self._stopped(held)
            else:  # nobody here did: the handler awaited something that was cancelled
                self._outcomes.fail(held, describe(error))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a stray one must not end the lane, and leave its task held for ever
            held.task = None
            self._failed(held, error)
        else:
            held.task = None
            self._outcomes.complete(held, output, then)

    def _stopped(self, held: Held) -> None:
        if held.stop is Stop.TIMED_OUT:
            self._outcomes.fail(held, f"timed out after {held.timeout:g} s")
        else:
            self._outcomes.release(held)

    def _failed(self, held: Held, error: BaseException) -> None:
        if isinstance(error, RetryLater):
            self._outcomes.fail(held, describe(error), delay=error.delay)
        elif isinstance(error, StepFailed):
            self._outcomes.fail(held, describe(error), final=True)
        else:
            log.info("%s: attempt %d failed", held, held.attempt, exc_info=error)
            self._outcomes.fail(held, describe(error))

    async def _go_on(self, held: Held, planned: PlannedStep, output: str) -> str | None:
        """Run the chain of pure steps behind this one; as far as it went, as JSON. The rest has tasks of its own."""
        done: list[str] = []
        dep = held.step_slug
        following: PlannedStep | None = planned
        while following is not None:
            try:
                context = self._context(held, following, attempt=1)
                value = await following.step.call({dep: from_json(output)}, None, context)
                if type(value) is Later:
                    break
                output = following.step.encode(value, self._max_bytes)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # it fails again in a task of its own, where that counts
                if held.stop is not None:
                    raise
                break
            done.append(f'{{"step": "{following.slug}", "output": {output}}}')
            dep, following = following.slug, following.then
        return f"[{', '.join(done)}]" if done else None

    async def _transact(self, held: Held) -> None:
        """The handler's own transaction: what it does there and the completion of its task commit together."""
        held.deadline = math.inf
        async with self._transactions:
            held.begin(held.task)  # the wait for a connection was none of its time
            try:
                with self._outcomes.room_for_next() as claim:
                    rows = await self._run_inside(held, claim)
            except Refused:
                held.task = None
                self._outcomes.refused(held)
                return
            except _NoArray as fault:  # the run fails by it, and nothing of the handler's is kept
                held.task = None
                self._outcomes.complete(held, fault.output, None)
                return
            except (DatabaseUnavailable, asyncio.CancelledError):
                self._outcomes.doubt()
                raise
        held.task = None
        self._outcomes.committed(held, rows)

    async def _run_inside(self, held: Held, claim: int) -> list[Any]:
        step = held.planned.step
        within = held.timeout + _GRACE + self._db.query_timeout
        async with self._db.connection(within=within) as connection, connection.transaction():
            await self._store.limit_idle(connection, held.timeout + _GRACE)
            context = self._context(held, held.planned, connection=connection)
            value = await step.call(held.input, held.flow_input, context)
            if type(value) is Later:
                return await self._outcomes.defer_in(connection, held, value)
            output = step.encode(value, self._max_bytes)
            if held.planned.feeds_map and not output.startswith("["):
                raise _NoArray(output)
            return await self._outcomes.complete_in(connection, held, output, claim)

    def _context(
        self,
        held: Held,
        planned: PlannedStep,
        *,
        attempt: int | None = None,
        connection: Connection | None = None,
    ) -> Context:
        return Context(
            run_id=held.run_id,
            flow=planned.flow_name,
            step=planned.slug,
            task_index=held.task_index,
            attempt=held.attempt if attempt is None else attempt,
            flow_input=partial(self._flow_input, held),
            progress=partial(self._progress, held),
            connection=connection,
        )

    async def _flow_input(self, held: Held) -> Any:
        if held.flow_input is None:
            held.flow_input = await self._store.run_input(held.run_id)
        return held.flow_input

    async def _progress(self, held: Held, progress: str) -> bool:
        return await self._store.report(held.run_id, held.step_slug, held.task_index, held.attempt, progress)
