"""After a call that broke off: when to look for tasks that the database takes for running here, and are not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_COMMITS_LATE = 5.0  # seconds after which a statement is over whose connection broke


class Doubt:
    """Asks for two looks: at once, and once more when no broken statement can commit any more."""

    def __init__(self) -> None:
        self._looks: list[float] = []  # by time.monotonic()

    def rise(self) -> None:
        """A call broke off that may have claimed tasks of which nobody here knows."""
        now = time.monotonic()
        self._looks = [now, now + _COMMITS_LATE]

    def pause(self) -> float | None:
        """Seconds until the next look, 0 when it is due; None when there is no doubt."""
        return max(self._looks[0] - time.monotonic(), 0.0) if self._looks else None

    @property
    def is_due(self) -> bool:
        return self.pause() == 0

    @contextmanager
    def look(self) -> Iterator[None]:
        """Look in this block. It is due again if the block fails, or a doubt rises meanwhile."""
        looks = self._looks
        yield
        if looks is self._looks:
            looks.pop(0)
