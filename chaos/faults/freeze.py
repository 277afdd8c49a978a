"""SIGSTOP, mostly for longer than the lease, then SIGCONT; or a kill while it is frozen."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from chaos.settings import LEASE
from chaos.system import System


@dataclass
class Freeze:
    """Of any worker or caller."""

    name: str = "freeze"
    weight: int = 4

    async def strike(self, system: System, die: random.Random) -> None:
        role, seconds, killed = die.choice(("worker", "worker", "caller")), _seconds(die), die.random() < 0.2
        member = system.take(die, role)
        if member is None:
            return
        with system.record.striking(self.name, member.process.name):
            member.process.freeze()
            await asyncio.sleep(seconds)
            if not killed:
                member.process.thaw()
        if killed:
            await system.kill(member)
        else:
            system.give_back(member)


def _seconds(die: random.Random) -> float:
    return die.uniform(LEASE - 1.5, LEASE + 2.5)
