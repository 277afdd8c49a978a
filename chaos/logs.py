"""What the workers' own logs tell: when they were late for a lease, and what no log may say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from chaos.process import Process
from chaos.settings import LEASE

_TIME = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ")
_INSTANCE = re.compile(r"^ +instance +([0-9a-f-]{36})")
_LATE = ("its lease has run out", "had been given up")
_COMPLAINTS = ("own code", "Traceback", "never retrieved", "never awaited")

Span = tuple[float, float]


def complaints(processes: Mapping[str, Process]) -> list[str]:
    """Lines that tell of a fault in the code."""
    return [
        f"{name}: {line}"
        for name, process in processes.items()
        for line in process.lines
        if any(words in line for words in _COMPLAINTS)
    ]


def instance(lines: Sequence[str]) -> str | None:
    """The instance that a worker said it is."""
    found = (_INSTANCE.match(line) for line in lines)
    return next((one.group(1) for one in found if one), None)


def late(lines: Sequence[str], clock: Path, offset: float) -> list[Span]:
    """When a worker was late for its lease, by its log: from the last sign that it can have given on.

    One whose wall clock jumped does not tell when: all the time, then. ``offset`` is from monotonic to wall time.
    """
    moments = [
        (words, when)
        for line in lines
        for words in _LATE
        if words in line and (when := _moment(line)) is not None
    ]
    if moments and clock.exists() and float(clock.read_text()) != 0:
        return [(float("-inf"), float("inf"))]
    spans: list[Span] = []
    ran_out: float | None = None
    for words, when in moments:
        if words == _LATE[0]:
            ran_out = when if ran_out is None else ran_out
        else:
            spans.append(((ran_out or when) - 2 * LEASE - offset, when + 1 - offset))
            ran_out = None
    return spans if ran_out is None else [*spans, (ran_out - 2 * LEASE - offset, float("inf"))]


def _moment(line: str) -> float | None:
    """The time of a line, as time.time() has it."""
    found = _TIME.match(line)
    if found is None:
        return None
    return datetime.fromisoformat(found.group(1)).timestamp() + int(found.group(2)) / 1000
