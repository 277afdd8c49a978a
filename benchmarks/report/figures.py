"""The figures of all rounds, and their medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Figures = dict[str, float | None]  # of one round, in units that the keys name
Results = dict[str, dict[str, list[Figures]]]  # measurement → contestant → one entry a round


def summary(results: Results) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Median, least and most of every figure."""
    return {
        measurement: {name: _figures(runs) for name, runs in contestants.items()}
        for measurement, contestants in results.items()
    }


def _figures(runs: Sequence[Figures]) -> dict[str, dict[str, float]]:
    found = {}
    for key in runs[0]:
        values = [value for run in runs if (value := run[key]) is not None]
        if values:
            found[key] = {
                "median": round(statistics.median(values), 4),
                "least": round(min(values), 4),
                "most": round(max(values), 4),
            }
    return found
