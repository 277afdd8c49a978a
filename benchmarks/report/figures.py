"""The figures of all rounds, and their medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Figures = dict[str, float | None]  # of one round, in units that the keys name
Spread = dict[str, float]
Results = dict[str, dict[str, list[Figures]]]  # measurement → contestant → one entry a round


def summary(results: Results) -> dict[str, dict[str, dict[str, Spread]]]:
    """Median, least and most of every figure; a round that failed has none."""
    return {
        measurement: {name: _figures(runs) for name, runs in contestants.items()}
        for measurement, contestants in results.items()
    }


def _figures(rounds: Sequence[Figures]) -> dict[str, Spread]:
    found = {}
    for key in dict.fromkeys(key for figures in rounds for key in figures):
        values = [value for figures in rounds if (value := figures.get(key)) is not None]
        if values:
            found[key] = spread(values)
    return found


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }
