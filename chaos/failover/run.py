"""One run: several failovers in a row under load, and then the ledger."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from chaos.crew.audit import Book, Verdict, audit, wait_until_ended
from chaos.crew.crew import Crew
from chaos.failover.pair import Pair
from pgnexus.db import schema

_LEASE = 12.0  # the default of worker_lease
_SIGN = 3.0  # and of heartbeat_interval: so old may the last sign of life be when the primary dies
_PATIENCE = 180.0  # seconds for what was asked to end


@dataclass
class Failover:
    """One of them; times are those of time.monotonic()."""

    killed: float
    promoted: float
    besides: list[str] = field(default_factory=list)  # what else was done to the system

    @property
    def outlasts_a_lease(self) -> bool:
        return self.promoted - self.killed > _LEASE - _SIGN - 1


class FailoverRun:
    """Callers and workers that know both servers, and one server after the other that is killed."""

    def __init__(self, path: Path, die: random.Random, *, synchronous: bool) -> None:
        self.failovers: list[Failover] = []
        self._die = die
        self._pair = Pair(path, synchronous=synchronous)
        self._crew = Crew(path, self._pair.url("app"), die)

    async def run(self, failovers: int) -> tuple[Verdict, Book]:
        try:
            await self._start()
            for number in range(failovers):
                if number:
                    await asyncio.to_thread(self._pair.rebuild)
                await self._fail_over()
            await asyncio.sleep(self._die.uniform(2, 4))
            for caller in list(self._crew.callers):  # they leave when all that they asked has ended
                await self._crew.leave(caller, _PATIENCE)
            await asyncio.to_thread(wait_until_ended, self._pair.primary.url("app"), _PATIENCE)
            book = Book.read(self._crew.ledgers)
            return await asyncio.to_thread(self._audit, book), book
        finally:
            await self._crew.stop()
            await asyncio.to_thread(self._pair.stop)

    async def _start(self) -> None:
        await asyncio.to_thread(self._pair.start)
        await asyncio.to_thread(self._pair.primary.create_database, "app")
        await schema.migrate(self._crew.url)
        await self._crew.start_provider()
        for _ in range(3):
            await self._crew.start_worker()
        for _ in range(2):
            await self._crew.start_caller(rate=self._die.uniform(5, 15))

    async def _fail_over(self) -> None:
        die, pair, besides = self._die, self._pair, []
        await asyncio.sleep(die.uniform(3, 7))
        if die.random() < 0.3:
            besides.append("the standby had yet to replay")
            await asyncio.to_thread(pair.pause_replay)
            await asyncio.sleep(die.uniform(0.5, 2))
        if die.random() < 0.3:
            besides.append("the standby had heard nothing for a while")
            pair.deafen_standby()
            await asyncio.sleep(die.uniform(0.2, 2))
        killed = time.monotonic()
        pair.kill_primary()
        if die.random() < 0.3:
            besides.append("a worker was killed with it")
            await self._crew.kill(die.choice(self._crew.workers))
        if die.random() < 0.3:
            besides.append("a caller was killed with it")
            await self._crew.kill(die.choice(self._crew.callers))
        await asyncio.sleep(die.uniform(_LEASE, 16) if die.random() < 0.15 else die.uniform(0, 4))
        await asyncio.to_thread(pair.promote)
        self.failovers.append(Failover(killed, time.monotonic(), besides))
        while len(self._crew.workers) < 3:
            await self._crew.start_worker()
        while len(self._crew.callers) < 2:
            await self._crew.start_caller(rate=die.uniform(5, 15))

    def _audit(self, book: Book) -> Verdict:
        outages = [(one.killed, one.promoted + _LEASE) for one in self.failovers if one.outlasts_a_lease]
        crew = self._crew
        return audit(self._pair.primary.url("app"), book, crew.account, crew.deaths, outages)
