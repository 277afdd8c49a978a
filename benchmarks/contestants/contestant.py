"""What a contestant is: everybody that is measured looks like this, raw pgmq and public peers, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from benchmarks.stage.provider_server import ProviderServer


class Ended(Protocol):
    """Who is told which requests have ended."""

    async def reached(self, count: int, timeout: float) -> float:
        """The moment, by time.perf_counter(), at which ``count`` requests had ended."""
        ...


class Driver(Protocol):
    """The caller's end. Requests are told apart by their numbers only."""

    @property
    def pids(self) -> Sequence[int]:
        """The processes whose time is the caller's."""
        ...

    @property
    def ended(self) -> Ended | None: ...

    async def enqueue_many(self, numbers: Sequence[int]) -> None: ...

    async def enqueue_each(self, numbers: Sequence[int], writers: int) -> None:
        """One by one, from so many coroutines."""
        ...

    async def call(self, number: int) -> float:
        """Seconds until the answer is in hand."""
        ...

    async def stored(self) -> int:
        """How many answers are committed."""
        ...


class Worker(Protocol):
    """One worker process, or several."""

    @property
    def pids(self) -> Sequence[int]: ...

    def memory(self) -> tuple[float | None, float | None]:
        """Resident memory in MB, now and at its peak."""
        ...


class Entrant(Protocol):
    """A contestant in one database."""

    async def prepare(self) -> None:
        """Make what it needs there."""
        ...

    def bulk(self) -> AbstractAsyncContextManager[tuple[Worker, Driver]]:
        """A worker, and a driver that counts the ends."""
        ...

    def alone(self, *, together: bool) -> AbstractAsyncContextManager[Driver]:
        """A driver that waits for each answer; with ``together`` the worker is in its process."""
        ...


Contestant = Callable[[str, ProviderServer], Entrant]  # the database's URL, and the vendor
