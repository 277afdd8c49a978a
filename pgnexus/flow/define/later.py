"""A handler's other answer: not now. No worker and no lease is held until somebody brings the output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from pgnexus.errors import StepFailed
from pgnexus.flow.define.options import LONGEST


@dataclass(frozen=True, slots=True)
class Later:
    """Whoever has the token, or a signal, completes the task; past ``timeout`` (seconds) it fails.

    ``kind`` says who brings the output: "signal" a person or a program, "llm" the answer to the request
    in ``details``. Without a ``token`` one is made.

    >>> Later(timedelta(minutes=5)).seconds
    300.0
    """

    timeout: timedelta | float
    kind: str = "signal"
    details: dict[str, Any] | None = None
    token: UUID | None = None

    def __post_init__(self) -> None:
        seconds_of(self.timeout)

    @property
    def seconds(self) -> float:
        return seconds_of(self.timeout)


def seconds_of(timeout: timedelta | float) -> float:
    """A time to wait, in seconds; `StepFailed` when it makes no sense."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise StepFailed(f"a timeout of {timeout!r}: use seconds, or a timedelta")
    if not 0 < seconds <= LONGEST:
        raise StepFailed(f"a timeout of {seconds:g} s: use more than 0 s, and ten years at most")
    return float(seconds)
