"""The graphs that are run, and their handlers: as good as nothing, so that what is measured is the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Input = dict[str, int]  # of a run: n (its number), width, element_bytes
Output = Any
Handler = Callable[[Any, Any], Output]  # of the task's input and the run's

_TEXT = hashlib.shake_256(b"a document").hexdigest(32_768)


@dataclass(frozen=True, slots=True)
class StepShape:
    """One step as `pgflow.add_step` wants it, and the handler that stands for it."""

    slug: str
    handler: Handler
    deps: tuple[str, ...] = ()
    kind: str = "single"


def elements(width: int, size: int) -> list[str]:
    """What a map step is spread over: texts of ``size`` characters that compress as little as a document's parts."""
    places = len(_TEXT) // size
    return [f"{number} {_TEXT[number % places * size :][:size]}"[:size] for number in range(width)]


def _number(_: Any, run: Input) -> Output:
    return run["n"]


def _spread(_: Any, run: Input) -> Output:
    return elements(run["width"], run["element_bytes"])


def _same(given: Any, _: Any) -> Output:
    return given


SHAPES: dict[str, tuple[StepShape, ...]] = {
    "one": (StepShape("first", _number),),
    "chain": (
        StepShape("first", _number),
        StepShape("second", lambda given, _: given["first"], ("first",)),
        StepShape("third", lambda given, _: given["second"], ("second",)),
    ),
    "spread": (
        StepShape("spread", _spread),
        StepShape("work", _same, ("spread",), "map"),
        StepShape("gather", lambda given, _: len(given["work"]), ("work",)),
    ),
}


def handlers(shape: str) -> dict[str, Handler]:
    """Each step's handler by its slug."""
    return {step.slug: step.handler for step in SHAPES[shape]}
