"""kill -9 of a process, and a new one in its place."""

from __future__ import annotations

import random
from dataclasses import dataclass

from chaos.system import System


@dataclass
class Kill:
    """Of any worker, or any caller."""

    role: str
    weight: int

    @property
    def name(self) -> str:
        return f"kill {self.role}"

    async def strike(self, system: System, die: random.Random) -> None:
        member = system.take(die, self.role)
        if member is not None:
            await system.kill(member)


@dataclass
class KillProvider:
    """Every call under way breaks off; those of the next seconds are refused by the host."""

    name: str = "kill provider"
    weight: int = 2

    async def strike(self, system: System, die: random.Random) -> None:
        assert system.provider is not None
        with system.record.striking(self.name):
            await system.provider.kill()
            await system.start_provider()
