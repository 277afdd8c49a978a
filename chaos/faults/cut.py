"""pg_terminate_backend at random, several times."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import psycopg

from chaos.queries import load
from chaos.system import System


@dataclass
class Cut:
    """Some connections of anybody are ended, as an operator may."""

    name: str = "cut connections"
    weight: int = 5

    async def strike(self, system: System, die: random.Random) -> None:
        times, share = die.randint(1, 4), die.choice((0.1, 0.3, 1.0))
        async with system.database_lock:
            with system.record.striking(self.name):
                for _ in range(times):
                    await _cut(system.url, die, share)
                    await asyncio.sleep(die.uniform(0.05, 0.4))


async def _cut(url: str, die: random.Random, share: float) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        rows = await (await connection.execute(load("backends"))).fetchall()
        for (pid,) in die.sample(rows, max(1, round(share * len(rows))) if rows else 0):
            await connection.execute(load("terminate"), {"pid": pid})
