"""How each contestant compares with its floor: each in the same round, and of that the median."""

from __future__ import annotations

from benchmarks.report.figures import Figures, Results, Spread, spread

Floors = dict[
    str, dict[str, tuple[str, str]]
]  # measurement → contestant → its floor's measurement and contestant
_KEYS = (
    "requests_per_second",
    "p50_ms",
    "first_word_p50_ms",
)  # the first that both have; of times less is better


def ratios(results: Results, floors: Floors) -> dict[str, dict[str, Spread]]:
    """The only figures that travel from machine to machine."""
    found: dict[str, dict[str, Spread]] = {}
    for measurement, contestants in results.items():
        for contestant, rounds in contestants.items():
            floor = floors.get(measurement, {}).get(contestant)
            if floor is None:
                continue
            theirs = results.get(floor[0], {}).get(floor[1], [])
            shares = [
                share for pair in zip(rounds, theirs, strict=False) if (share := _ratio(*pair)) is not None
            ]
            if shares:
                found.setdefault(measurement, {})[contestant] = spread(shares)
    return found


def _ratio(mine: Figures, floor: Figures) -> float | None:
    for key in _KEYS:
        ours, theirs = mine.get(key), floor.get(key)
        if ours is not None and theirs:
            return ours / theirs
    return None
