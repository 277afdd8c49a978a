"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Amounts; those of a whole run take some 25 minutes on two cores."""

    runs: int = 5
    long_runs: int = 1  # of what takes minutes each time
    requests: int = 8000
    peer_requests: int = 2000  # most peers are slower
    workers: tuple[int, ...] = (2, 4)
    calls: int = 500  # one after another
    peer_calls: int = 100
    half_load_seconds: float = 8.0
    slow_requests: int = 1000
    most_slow_requests: int = 10_000
    slow_delay: float = 0.2
    enqueued: int = 10_000
    enqueued_alone: int = 1000
    small_backlog: int = 1000
    backlog: int = 1_000_000
    beside: int = 100_000  # delayed, in flight, over their limit, all of one agent
    window: int = 5000  # requests that are enqueued and done above a backlog
    windows: int = 3
    bloat_seconds: float = 36.0  # a phase
    streams: int = 8
    streams_at_once: int = 200
    peers: bool = True


QUICK = Plan(
    runs=1, requests=2000, peer_requests=300, workers=(2,), calls=100, peer_calls=50, half_load_seconds=2.0,
    most_slow_requests=2000, enqueued=2000, enqueued_alone=200, backlog=20_000, beside=5000, window=2000, windows=1,
    bloat_seconds=5.0, streams=5,
)  # fmt: skip
