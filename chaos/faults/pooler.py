"""kill -9 of PgBouncer, or its end, and a new one on the same port."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from chaos.system import System


@dataclass
class KillPooler:
    """All connections through it break."""

    name: str = "kill pooler"
    weight: int = 2

    async def strike(self, system: System, die: random.Random) -> None:
        pooler, killed, away = system.bouncer, die.random() < 0.5, die.uniform(0, 2)
        if pooler is None:
            return
        async with system.pooler_lock:
            with system.record.striking(self.name, *system.behind("pooler")):
                await asyncio.to_thread(pooler.kill9 if killed else pooler.stop)
                await asyncio.sleep(away)
                await asyncio.to_thread(pooler.start)
