"""pgnexus to the floor."""

from __future__ import annotations

import statistics

from rich.console import Console

from benchmarks.report.figures import Results
from benchmarks.report.tables import show_tables


def ratios(results: Results) -> dict[str, float]:
    """pgnexus to the floor, each in its own run, and of that the median: the only figures that travel."""
    pairs = {
        "throughput to the floor": ("bulk", "pgnexus", "raw pgmq", "requests_per_second"),
        "throughput one by one to the floor": ("bulk", "pgnexus, one by one", "raw pgmq", "requests_per_second"),
        "slow calls' time to the floor": ("slow", "pgnexus", "raw pgmq", "seconds"),
        "p50 to the floor, one process": ("alone, one process", "pgnexus", "raw pgmq", "p50_ms"),
        "p50 to the floor, two processes": ("alone, two processes", "pgnexus", "raw pgmq", "p50_ms"),
    }  # fmt: skip
    found = {}
    for name, (measurement, ours, floor, key) in pairs.items():
        both = results.get(measurement, {})
        shares = [
            mine[key] / theirs[key]  # type: ignore[operator]
            for mine, theirs in zip(both.get(ours, ()), both.get(floor, ()), strict=False)
        ]
        if shares:
            found[name] = round(statistics.median(shares), 3)
    return found


def show(results: Results, console: Console) -> None:
    """Print one table a measurement, then the ratios."""
    show_tables(results, console)
    for name, ratio in ratios(results).items():
        console.print(f"{name}: {ratio:g}")
