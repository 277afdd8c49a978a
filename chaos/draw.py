"""What a caller asks, drawn from the seed and the caller's name: the same words for the same seed."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from chaos.provider import MOST_TOKENS

# What is asked, and how often in a hundred times.
KINDS = {
    "call": 20,
    "enqueue": 22,
    "many": 6,
    "joined": 12,
    "keyed": 8,
    "stream": 12,
    "cached": 6,
    "flight": 8,
    "flow": 6,
}
SHARING = ("cached", "flight")  # whose answers may be given to others
_MODELS = (("alpha", "m1"), ("alpha", "m3"), ("beta", "m2"))


@dataclass(frozen=True)
class Drawn:
    """One thing to ask, ``at`` so many seconds after the beginning."""

    kind: str
    marks: tuple[str, ...]
    at: float
    options: dict[str, Any] = field(default_factory=dict)
    cancel_after: float | None = None
    chunks: int | None = None  # of a stream, after which its reader leaves
    rolls_back: bool = False  # a joined transaction
    repeats: bool = False  # a key: asked once more when it has been accepted
    waits: bool = True  # for the result


def drawn(seed: int, caller: str, rate: float, kinds: Collection[str] = tuple(KINDS)) -> Iterator[Drawn]:
    """What this caller asks, without end, in the order of time: ``rate`` things a second on average."""
    die = random.Random(f"{seed} {caller}")
    weights = [KINDS[kind] for kind in kinds]
    at = 0.0
    for number in count():
        at += die.expovariate(rate)
        of_its_own = random.Random(die.getrandbits(64))
        yield _one(of_its_own, die.choices(list(kinds), weights)[0], f"{caller}-{number}", at)


def _one(die: random.Random, kind: str, name: str, at: float) -> Drawn:
    if kind == "flow":
        return Drawn(kind, (f"{kind}-{name}",), at, cancel_after=_sometimes(die, 0.1, 0, 4))
    if kind in SHARING:
        return _shared(die, kind, at)
    options = _options(die)
    marks = [f"{kind}-{name}"]
    if kind == "many":
        marks = [f"{kind}-{name}-{number}" for number in range(die.randint(2, 12))]
    if kind in ("enqueue", "keyed", "many") and die.random() < 0.2:
        options["delay"] = die.uniform(0.2, 4)
    return Drawn(
        kind,
        tuple(marks),
        at,
        options,
        cancel_after=_sometimes(die, 0.1, 0, 5) if kind in ("enqueue", "keyed") else None,
        chunks=die.randint(1, 6) if kind == "stream" and die.random() < 0.25 else None,
        rolls_back=kind == "joined" and die.random() < 0.35,
        repeats=kind == "keyed" and die.random() < 0.5,
        waits=die.random() < 0.6,
    )


def _options(die: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {
        "complexity": die.choice(("simple", "medium", "complex")),
        "max_tokens": MOST_TOKENS,
        "priority": die.choice(("interactive", "standard", "batch")),
        "timeout": None,
    }
    if agent := die.choices((None, "flood", "spender", "one", "other"), (25, 35, 20, 10, 10))[0]:
        options["agent_id"] = agent
    if die.random() < 0.2:
        options["provider"], options["model"] = die.choice(_MODELS)
    if die.random() < 0.12:
        options["timeout"] = die.uniform(0.5, 6)
    return options


def _shared(die: random.Random, kind: str, at: float) -> Drawn:
    """One of few questions, so that many ask the same."""
    options = _options(die) | {"complexity": "simple", "timeout": None}
    for name in ("provider", "model", "agent_id"):
        options.pop(name, None)
    mark = f"{kind}{die.randrange(4)}"
    options |= {"cache": 30.0} if kind == "cached" else {"single_flight": True}
    if die.random() < 0.2:  # its route shares with everybody
        mark = f"faq-{mark}"
        options |= {"task_type": "faq", "agent_id": die.choice(("one", "other"))}
    return Drawn(kind, (mark,), at, options, cancel_after=_sometimes(die, 0.1, 0, 2))


def _sometimes(die: random.Random, odds: float, least: float, most: float) -> float | None:
    return die.uniform(least, most) if die.random() < odds else None
