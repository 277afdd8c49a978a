"""The file that keeps everything: written after each turn, so that a run can be resumed, or a part of it done again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.figures import Figures, Results, summary
from benchmarks.report.ratios import Floors, ratios


@dataclass(slots=True)
class Store:
    """What was found so far, and where it is kept; ``about`` is the machine, the server and the plan."""

    path: Path
    about: dict[str, Any] = field(default_factory=dict)
    results: Results = field(default_factory=dict)
    floors: Floors = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Store:
        """What an earlier run left there."""
        if not path.exists():
            return cls(path)
        kept = json.loads(path.read_text())
        floors = {
            measurement: {name: (floor[0], floor[1]) for name, floor in of.items()}
            for measurement, of in kept["floors"].items()
        }
        return cls(path, kept["about"], kept["runs"], floors, kept["titles"], kept["samples"], kept["faults"])

    def forget(self, measurements: Iterable[str]) -> None:
        """They are measured again."""
        names = set(measurements)
        for name in names:
            for kept in (self.results, self.floors, self.titles):
                kept.pop(name, None)
        self.faults = [fault for fault in self.faults if fault["measurement"] not in names]

    def has(self, measurement: str, contestant: str, number: int) -> bool:
        """Whether there are figures of that round."""
        rounds = self.results.get(measurement, {}).get(contestant, [])
        return len(rounds) >= number and bool(rounds[number - 1])

    def put(self, measurement: str, contestant: str, number: int, figures: Figures) -> None:
        """Keep the figures of that round; what failed in it before is made good."""
        here = {"measurement": measurement, "contestant": contestant, "round": number}
        self.faults = [fault for fault in self.faults if not here.items() <= fault.items()]
        rounds = self.results.setdefault(measurement, {}).setdefault(contestant, [])
        rounds.extend({} for _ in range(number - len(rounds)))
        rounds[number - 1] = figures
        self.save()

    def fail(self, measurement: str, contestant: str, number: int, error: str) -> None:
        """Keep why that round has no figures."""
        self.put(measurement, contestant, number, {})
        where = {"measurement": measurement, "contestant": contestant, "round": number}
        self.faults.append({**where, "error": error})
        self.save()

    def save(self) -> None:
        """Write a new file, then put it in the old one's place."""
        kept = {
            "about": self.about,
            "titles": self.titles,
            "summary": summary(self.results),
            "ratios": ratios(self.results, self.floors),
            "faults": self.faults,
            "runs": self.results,
            "floors": self.floors,
            "samples": self.samples,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(kept, indent=2) + "\n")
        draft.replace(self.path)
