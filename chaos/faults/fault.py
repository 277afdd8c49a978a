"""What every fault is."""

from __future__ import annotations

import random
from typing import Protocol

from chaos.system import System


class Fault(Protocol):
    """One kind of fault; ``name`` is as `chaos.record` knows it, ``weight`` how often it is drawn."""

    weight: int

    @property
    def name(self) -> str: ...

    async def strike(self, system: System, die: random.Random) -> None:
        """Do it, and note it in the system's record; returns when it is healed."""
