"""Under every loop and every statement that is said again: how long to wait before the next try."""

from __future__ import annotations

import random

FIRST = 0.1  # seconds
LAST = 5.0


def backoff(tries: int, *, last: float = LAST) -> float:
    """Seconds after so many tries that failed: exponential up to ``last``, with jitter, so that a crowd comes apart.

    >>> 0.05 <= backoff(1) <= 0.2, 0.05 <= backoff(100) <= 5.0
    (True, True)
    """
    return random.uniform(FIRST / 2, min(last, FIRST * 2.0 ** min(tries, 10)))
