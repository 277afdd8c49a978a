"""What is measured: how many runs of which graph, by how many workers."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, replace

from benchmarks.flow.shapes import SHAPES, Input


@dataclass(frozen=True, slots=True)
class Portion:
    """Runs that one worker is told to start, by their numbers."""

    first: int
    count: int
    width: int
    element_bytes: int

    def inputs(self) -> list[Input]:
        same = {"width": self.width, "element_bytes": self.element_bytes}
        return [{"n": number, **same} for number in range(self.first, self.first + self.count)]

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Portion:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Case:
    """One amount of work; ``shape`` is a name of `SHAPES` and the flow's slug."""

    name: str
    shape: str
    runs: int
    width: int = 1
    element_bytes: int = 8
    workers: int = 1

    @property
    def steps(self) -> int:
        """Tasks in all; one of a single step, ``width`` of a map."""
        return self.runs * sum(self.width if step.kind == "map" else 1 for step in SHAPES[self.shape])

    def shortened(self, share: float) -> Case:
        """The same with fewer runs: at least one, of the same width."""
        return replace(self, runs=max(1, round(self.runs * share)))

    def warm_up(self) -> Case:
        """A little of the same, by which every connection has met every statement."""
        return replace(self, runs=min(self.runs, 5 * self.workers), width=min(self.width, 20))

    def portions(self, first: int) -> list[Portion]:
        """The runs from number ``first`` on, dealt out to the workers."""
        bounds = [first + self.runs * number // self.workers for number in range(self.workers + 1)]
        return [
            Portion(begin, end - begin, self.width, self.element_bytes)
            for begin, end in itertools.pairwise(bounds)
        ]


_KB = 1024
CASES = {
    case.name: case
    for case in (
        Case("chain", "chain", 2000),
        Case("fan-out", "spread", 50, 100),
        Case("wide-100", "spread", 80, 100, _KB),
        Case("wide-1000", "spread", 8, 1000, _KB),
        Case("wide-8000", "spread", 1, 8000, _KB),
        Case("workers-1", "one", 2000),
        Case("workers-4", "one", 2000, workers=4),
        Case("workers-8", "one", 2000, workers=8),
    )
}
