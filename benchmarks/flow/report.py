"""The figures as tables, and the ratios, which are what travels from machine to machine."""

from __future__ import annotations

import statistics

from rich.console import Console

from benchmarks.flow.ways import WAYS
from benchmarks.report.figures import Results
from benchmarks.report.tables import show_tables

_SPEED, _COST, _CPU = "steps_per_second", "ms_per_step", "server_cpu_ms_per_step"
_BASES = ("protocol", "protocol-1")


def ratios(results: Results) -> dict[str, float]:
    """Each within one run, and of that the median."""
    found: dict[str, float] = {}

    def note(name: str, over: tuple[str, str], under: tuple[str, str], key: str) -> None:
        pairs = zip(_runs(results, over, key), _runs(results, under, key), strict=False)
        shares = [mine / theirs for mine, theirs in pairs if theirs]
        if shares:
            found[name] = round(statistics.median(shares), 3)

    for case, ways in results.items():
        for base in _BASES:
            for way in ways:
                if way not in _BASES:
                    note(f"{case}: {way} to {base}, speed", (case, way), (case, base), _SPEED)
                    note(f"{case}: {base} to {way}, server cpu", (case, base), (case, way), _CPU)
    for way in WAYS:
        for wide in ("wide-1000", "wide-8000"):
            note(f"{way}: {wide} to wide-100, cost of a step", (wide, way), ("wide-100", way), _COST)
            note(f"{way}: {wide} to wide-100, server cpu", (wide, way), ("wide-100", way), _CPU)
        for many in ("workers-4", "workers-8"):
            note(f"{way}: {many} to workers-1, speed", (many, way), ("workers-1", way), _SPEED)
    return found


def _runs(results: Results, place: tuple[str, str], key: str) -> list[float]:
    case, way = place
    return [value for run in results.get(case, {}).get(way, ()) if (value := run[key]) is not None]


def show(results: Results, console: Console) -> None:
    """Print one table a case, then the ratios."""
    show_tables(results, console)
    for name, ratio in ratios(results).items():
        console.print(f"{name}: {ratio:g}")
