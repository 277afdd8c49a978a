"""The wall clock of one process jumps, forward or backward, by a second or by a day."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from chaos.clock import SEEN_WITHIN
from chaos.system import System

_JUMPS = (-86400.0, -3600.0, -61.0, -5.0, 5.0, 61.0, 3600.0, 86400.0)


@dataclass
class ClockJump:
    """Of a process that goes by a clock of its own; it keeps the time that it got."""

    name: str = "clock jump"
    weight: int = 3

    async def strike(self, system: System, die: random.Random) -> None:
        seconds = die.choice(_JUMPS)
        clocks = {name: one.clock for name, one in sorted(system.members.items()) if one.clock is not None}
        if not clocks:
            return
        name = die.choice(list(clocks))
        with system.record.striking(self.name, name):
            clocks[name].jump(seconds)
            await asyncio.sleep(SEEN_WITHIN)
