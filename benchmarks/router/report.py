"""The figures as tables, on the screen and as Markdown, and the ratios, which are what travels."""

from __future__ import annotations

import statistics

from benchmarks.report.figures import Results, summary
from benchmarks.report.tables import cell

_BARE = "aiohttp"
_KEYS = {"speed": "calls_per_second", "speed, cpu": "cpu_us_per_call", "first words": "p50_ms"}


def ratios(results: Results) -> dict[str, float]:
    """Each contestant to aiohttp bare within one round, and of that the median; more is better only for speed."""
    found: dict[str, float] = {}
    for name, key in _KEYS.items():
        contestants = results.get(name.partition(",")[0], {})
        base = contestants.get(_BARE, [])
        for contestant, runs in contestants.items():
            pairs = zip((run[key] for run in runs), (run[key] for run in base), strict=False)
            shares = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
            if shares and contestant != _BARE:
                found[f"{name}: {contestant} to {_BARE}"] = round(statistics.median(shares), 3)
    return found


def markdown(results: Results) -> str:
    """One table a measurement; medians, and from least to most in brackets."""
    lines: list[str] = []
    for measurement, contestants in summary(results).items():
        keys = list(dict.fromkeys(key for figures in contestants.values() for key in figures))
        lines += [f"| {measurement} | {' | '.join(key.replace('_', ' ') for key in keys)} |"]
        lines += ["| --- |" + " ---: |" * len(keys)]
        for name, figures in contestants.items():
            lines += [f"| {name} | {' | '.join(cell(figures.get(key)) for key in keys)} |"]
        lines += [""]
    lines += [f"- {name}: {ratio:g}" for name, ratio in ratios(results).items()]
    return "\n".join(lines) + "\n"
