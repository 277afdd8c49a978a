"""The database server is stopped, killed, or restarted."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from chaos.system import System


@dataclass
class Stop:
    """pg_ctl stop in this mode, and a start some time later."""

    name: str = "stop database"
    weight: int = 2

    async def strike(self, system: System, die: random.Random) -> None:
        away = die.uniform(0, 3)
        async with system.database_lock:
            with system.record.striking(self.name):
                await asyncio.to_thread(system.server.stop, "fast")
                await asyncio.sleep(away)
                await asyncio.to_thread(system.server.start)


@dataclass
class Crash:
    """kill -9 of the postmaster, or an immediate stop: both end without a checkpoint, and recover at the start."""

    name: str = "kill database"
    weight: int = 2

    async def strike(self, system: System, die: random.Random) -> None:
        immediate, away = die.random() < 0.3, die.uniform(0, 2)
        async with system.database_lock:
            with system.record.striking(self.name):
                if immediate:
                    await asyncio.to_thread(system.server.stop, "immediate")
                else:
                    system.server.kill9()
                await asyncio.sleep(away)
                await asyncio.to_thread(system.server.start)


@dataclass
class Restart:
    """Stopped fast and started again at once."""

    name: str = "restart database"
    weight: int = 1

    async def strike(self, system: System, die: random.Random) -> None:
        async with system.database_lock:
            with system.record.striking(self.name):
                await asyncio.to_thread(system.server.stop, "fast")
                await asyncio.to_thread(system.server.start)
