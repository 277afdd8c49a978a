"""Nexus side, before each provider call: those that wait for room, and who is next.

Lanes go in order. Within a lane agents alternate, and each of an agent's calls waits behind its earlier ones. Who
lacks something keeps others from it that come later or by a lower lane, however little they need.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from pgnexus.messages import Priority
from pgnexus.nexus.limits.permit import Ask, OverBudget, OverLimit, Permit
from pgnexus.nexus.limits.scopes import Rule

LANES: dict[Priority, int] = {"interactive": 0, "standard": 1, "batch": 2}
Key = tuple[str, str]
Takings = Sequence[tuple[Rule, Decimal]]


@dataclass(slots=True, eq=False)
class Waiter:
    """One call that waits. ``round`` is the last lease that was asked for before it came."""

    ask: Ask
    takings: Takings
    since: float
    patience: float
    round: int
    answer: asyncio.Future[Permit | OverLimit | OverBudget]
    timer: asyncio.TimerHandle | None = None

    @property
    def lane(self) -> int:
        return LANES[self.ask.priority]


@dataclass(slots=True)
class _Lane:
    lines: dict[tuple[object, ...], deque[Waiter]] = field(default_factory=dict)
    counts: dict[Key, int] = field(default_factory=dict)


class Waiting:
    """All that wait in this worker."""

    def __init__(self) -> None:
        self._lanes = [_Lane() for _ in LANES]
        self._amounts: dict[Key, Decimal] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def amount(self, key: Key) -> Decimal:
        """What all of them want of one amount."""
        return self._amounts.get(key, Decimal(0))

    def wanted(self) -> Sequence[Key]:
        """What they wait for, among it what they may have."""
        return list(self._amounts)

    def keep_out(self, lane: int, takings: Takings) -> bool:
        """Whether a newcomer of that lane has to wait behind others."""
        return any(
            rule.key in self._lanes[higher].counts for higher in range(lane + 1) for rule, _ in takings
        )

    def add(self, waiter: Waiter) -> None:
        lane = self._lanes[waiter.lane]
        lane.lines.setdefault(_line(waiter), deque()).append(waiter)
        for rule, amount in waiter.takings:
            lane.counts[rule.key] = lane.counts.get(rule.key, 0) + 1
            self._amounts[rule.key] = self.amount(rule.key) + amount
        self._count += 1

    def remove(self, waiter: Waiter) -> None:
        lane, name = self._lanes[waiter.lane], _line(waiter)
        line = lane.lines[name]
        line.remove(waiter)
        if not line:
            del lane.lines[name]
        self._count -= 1
        for rule, amount in waiter.takings:
            lane.counts[rule.key] -= 1
            self._amounts[rule.key] -= amount
            if not lane.counts[rule.key]:
                del lane.counts[rule.key]
                if not any(rule.key in other.counts for other in self._lanes):
                    del self._amounts[rule.key]

    def serve(self, attempt: Callable[[Waiter, set[Key]], bool]) -> None:
        """Offer everybody who is next to ``attempt``, with what earlier ones lack.

        It says whether that one leaves, and adds what it lacks.
        """
        lacking: set[Key] = set()
        for lane in self._lanes:
            names = list(lane.lines)
            while names:
                names = [name for name in names if self._served(lane, name, attempt, lacking)]

    def _served(
        self,
        lane: _Lane,
        name: tuple[object, ...],
        attempt: Callable[[Waiter, set[Key]], bool],
        lacking: set[Key],
    ) -> bool:
        """Whether the first of a line left and others stand behind it; the line goes to the end."""
        waiter = lane.lines[name][0]
        if not attempt(waiter, lacking):
            return False
        self.remove(waiter)
        line = lane.lines.pop(name, None)
        if line is not None:
            lane.lines[name] = line
        return line is not None


def _line(waiter: Waiter) -> tuple[object, ...]:
    ask = waiter.ask
    return (ask.agent_id, ask.provider, ask.model, ask.key)
