"""What a measurement asks of whoever is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from benchmarks.stage.child import Child
from benchmarks.stage.provider_server import ProviderServer


class Ended(Protocol):
    """The clock's end."""

    async def reached(self, count: int, timeout: float) -> float:
        """The moment, by time.perf_counter(), at which ``count`` requests had ended."""
        ...


class Driver(Protocol):
    """The application's side of a contestant; ``ended`` is None where nothing counts ends."""

    @property
    def ended(self) -> Ended | None: ...

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        """The prompts of these numbers, in batches of up to a thousand."""
        ...

    async def enqueue_each(self, numbers: Sequence[int], writers: int) -> None:
        """The same one by one, from so many coroutines."""
        ...

    async def call(self, number: int) -> float:
        """Seconds until the answer is in hand."""
        ...

    async def stored(self) -> int:
        """How many answers the database holds."""
        ...


class Entrant(Protocol):
    """A contestant in one database."""

    async def prepare(self) -> None:
        """Install what it needs there."""
        ...

    def bulk(self) -> AbstractAsyncContextManager[tuple[Child, Driver]]:
        """One worker process, and a driver that counts the ends."""
        ...

    def alone(self, *, together: bool) -> AbstractAsyncContextManager[Driver]:
        """A driver that waits for each answer, in the worker's process or in another."""
        ...


Contestant = Callable[[str, ProviderServer], Entrant]  # the database's URL, and the vendor
