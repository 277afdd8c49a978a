"""The figures of all runs as medians with their spread, as a table to read and as JSON to keep."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measurements import Figures

_PACKAGES = ("pgnexus", "psycopg", "pgmq", "aiohttp", "pydantic")
Results = dict[str, dict[str, list[Figures]]]  # measurement → contestant → one entry a run


def machine() -> dict[str, Any]:
    """Where it ran; the load shows whether it had the machine to itself."""
    model, memory = "", 0
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_mb": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "load_at_start": os.getloadavg()[0],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "from source"


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


def show_tables(results: Results, console: Console) -> None:
    """Print one table a measurement."""
    for measurement, contestants in summary(results).items():
        table = Table(title=measurement, title_justify="left", caption="median (least to most)")
        table.add_column("")
        for name in contestants:
            table.add_column(name, justify="right")
        for key in dict.fromkeys(key for figures in contestants.values() for key in figures):
            cells = [cell(figures.get(key)) for figures in contestants.values()]
            table.add_row(key.replace("_", " "), *cells)
        console.print(table)


def cell(figure: dict[str, float] | None) -> str:
    """The median of a figure, and its spread."""
    if figure is None:
        return "-"
    median, least, most = (_short(figure[key]) for key in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
