"""The wire between some processes and the database hangs, is cut, is slow, or swallows answers."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from chaos.settings import LEASE
from chaos.system import System


@dataclass
class Hang:
    """Nothing passes, and nothing is closed: mostly for longer than the lease."""

    name: str = "hang"
    weight: int = 3

    async def strike(self, system: System, die: random.Random) -> None:
        number, seconds = die.randrange(len(system.proxies)), die.uniform(0.5, LEASE + 3)
        with system.record.striking(self.name, *system.behind(f"proxy {number}")):
            system.proxies[number].hang(seconds)
            await asyncio.sleep(seconds)


@dataclass
class Reset:
    """All connections are cut with RST."""

    name: str = "reset"
    weight: int = 3

    async def strike(self, system: System, die: random.Random) -> None:
        number, times = die.randrange(len(system.proxies)), die.randint(1, 4)
        with system.record.striking(self.name, *system.behind(f"proxy {number}")):
            for _ in range(times):
                system.proxies[number].reset()
                await asyncio.sleep(die.uniform(0, 0.5))


@dataclass
class Delay:
    """Every piece of data is late."""

    name: str = "delay"
    weight: int = 2

    async def strike(self, system: System, die: random.Random) -> None:
        number, late, seconds = (
            die.randrange(len(system.proxies)),
            die.uniform(0.02, 0.5),
            die.uniform(1, 5),
        )
        with system.record.striking(self.name, *system.behind(f"proxy {number}")):
            system.proxies[number].delay(late, seconds)
            await asyncio.sleep(seconds)


@dataclass
class Mute:
    """What is sent arrives, no answer comes back, then all is cut: nobody knows what was committed."""

    name: str = "mute"
    weight: int = 3

    async def strike(self, system: System, die: random.Random) -> None:
        number, seconds = die.randrange(len(system.proxies)), die.uniform(0.05, 1.5)
        with system.record.striking(self.name, *system.behind(f"proxy {number}")):
            system.proxies[number].mute(seconds)
            await asyncio.sleep(seconds)
