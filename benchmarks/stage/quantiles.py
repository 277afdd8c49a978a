"""Quantiles of times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHARES = (50, 90, 95, 99, 99.9)  # percent


def quantiles(seconds: Iterable[float], shares: Sequence[float] = SHARES) -> dict[str, float]:
    """In milliseconds, by names like ``p50_ms`` and ``p99.9_ms``."""
    ordered = sorted(seconds)
    return {
        f"p{share:g}_ms": ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] * 1000
        for share in shares
    }
