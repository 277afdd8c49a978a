"""What is printed of rounds, and written as JSON."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from chaos.ledger.verdict import Verdict, middle_and_most

_SHOWN = 12  # of what is wrong; the rest is in the JSON


def of_round(verdict: Verdict) -> str:
    """One round, some lines."""
    asked_again = sum(verdict.asked_again.values())
    settled = "never" if verdict.settled is None else f"{verdict.settled:.1f} s"
    lines = [
        f"seed {verdict.seed}: {'green' if verdict.green else 'RED'}",
        f"  accepted {verdict.accepted}, rolled back {verdict.rolled_back}, undecided {verdict.undecided}; "
        f"settled after {settled}",
        f"  results  {_listed(verdict.results)}; runs {_listed(verdict.runs)}",
        f"  lost {len(verdict.lost)}, doubled {len(verdict.doubled)}, stuck {len(verdict.stuck)}, "
        f"otherwise wrong {len(verdict.wrong)}",
        f"  provider {verdict.calls} calls, {asked_again} of them again; told to wait {verdict.told_to_wait} times",
        *(f"    {number:5} {reason}" for reason, number in verdict.asked_again.items()),
        f"  faults   {_listed(verdict.faults)}",
    ]
    for name in ("lost", "doubled", "stuck", "wrong"):
        found = getattr(verdict, name)
        lines += [f"  {name}: {one}" for one in found[:_SHOWN]]
        lines += [f"  {name}: … {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "\n".join(lines)


def of_all(verdicts: list[Verdict]) -> str:
    """The table over all rounds, and how fast the system came back after each kind of fault."""
    head = (
        "seed",
        "accepted",
        "results",
        "calls",
        "again",
        "faults",
        "lost",
        "doubled",
        "stuck",
        "wrong",
        "",
    )
    rows = [
        (
            str(one.seed), str(one.accepted), str(sum(one.results.values())), str(one.calls),
            str(sum(one.asked_again.values())), str(sum(one.faults.values())), str(len(one.lost)),
            str(len(one.doubled)), str(len(one.stuck)), str(len(one.wrong)), "green" if one.green else "RED",
        )
        for one in verdicts
    ]  # fmt: skip
    sections = [_table([head, *rows])]
    recovered = recoveries(verdicts)
    if recovered:
        back: list[tuple[str, ...]] = [("seconds until the next result after", "times", "p50", "max")]
        for fault, seconds in sorted(recovered.items()):
            p50, most = middle_and_most(seconds)
            back.append((fault, str(len(seconds)), f"{p50:.2f}", f"{most:.2f}"))
        sections.append(_table(back))
    again: Counter[str] = Counter()
    for one in verdicts:
        again.update(one.asked_again)
    if again:
        why: list[tuple[str, ...]] = [("why the provider was asked again", "times")]
        sections.append(_table([*why, *((reason, str(number)) for reason, number in again.most_common())]))
    return "\n\n".join(sections)


def recoveries(verdicts: Iterable[Verdict]) -> dict[str, list[float]]:
    """Of all rounds, by fault."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in verdicts:
        for fault, seconds in one.recovery.items():
            found[fault] += seconds
    return found


def write(path: Path, verdicts: list[Verdict], about: Mapping[str, object]) -> None:
    """The same for programs."""
    whole = {**about, "rounds": [one.as_json() for one in verdicts]}
    path.write_text(json.dumps(whole, indent=1, default=str) + "\n")


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
