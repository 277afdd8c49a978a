"""Who strikes: several hands at once, each with a pack of faults that the seed has shuffled."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

from chaos.faults.clock_jump import ClockJump
from chaos.faults.cut import Cut
from chaos.faults.database import Crash, Restart, Stop
from chaos.faults.fault import Fault
from chaos.faults.freeze import Freeze
from chaos.faults.kill import Kill, KillProvider
from chaos.faults.network import Delay, Hang, Mute, Reset
from chaos.faults.pooler import KillPooler
from chaos.system import System

FAULTS: tuple[Fault, ...] = (
    Kill("worker", weight=6),
    Kill("caller", weight=3),
    KillProvider(),
    Freeze(),
    Stop(),
    Crash(),
    Restart(),
    Cut(),
    Hang(),
    Reset(),
    Delay(),
    Mute(),
    KillPooler(),
    ClockJump(),
)
HANDS = 2


async def strike(system: System, seconds: float) -> None:
    """Let all hands strike for so long; returns when what they began is healed."""
    end = time.monotonic() + seconds
    await asyncio.gather(*(_hand(system, number, end) for number in range(HANDS)))
    await system.complete()


async def _hand(system: System, number: int, end: float) -> None:
    die = random.Random(f"{system.seed} hand {number}")
    for fault in _drawn(die):
        pause = die.uniform(0.3, 1.5)
        of_its_own = random.Random(die.getrandbits(64))  # what one fault draws shifts no other
        await asyncio.sleep(min(pause, max(0.0, end - time.monotonic())))
        if time.monotonic() >= end:
            return
        await fault.strike(system, of_its_own)


def _drawn(die: random.Random) -> Iterator[Fault]:
    """Packs without end: a rare fault comes once a pack, a frequent one more often."""
    while True:
        pack = [fault for fault in FAULTS for _ in range(fault.weight)]
        die.shuffle(pack)
        yield from pack
