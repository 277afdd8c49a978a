"""What a measurement is: turns, which contestants take round by round, so that a busy moment hits them all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contestants.contestant import Contestant
from benchmarks.plan import Plan
from benchmarks.report.figures import Figures, Results
from benchmarks.stage.database import MeasuredDatabase
from benchmarks.stage.provider_server import Vendors

Samples = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a measurement takes place, and what was found before it."""

    database: MeasuredDatabase
    plan: Plan
    vendors: Vendors
    peers: Mapping[str, Contestant]
    results: Results
    samples: dict[str, Samples] = field(default_factory=dict)  # of what is watched over time, by its name


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant's part; ``floor`` names the measurement and contestant that it is compared with."""

    contestant: str
    run: Callable[[], Awaitable[Figures]]
    floor: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A name, a line that says what happens, and its turns; a long one comes after all others, and less often."""

    name: str
    title: str
    turns: Callable[[Scene], Sequence[Turn]]
    long: bool = False
