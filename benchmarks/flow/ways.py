"""The ways of doing the same work, each a kind of worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol as Shape

from benchmarks.flow.batches import Batches
from benchmarks.flow.cases import Portion
from benchmarks.flow.protocol import Protocol


class Worker(Shape):
    """What a worker process has of its way."""

    def working(self) -> AbstractAsyncContextManager[None]:
        """Work for the duration of the block."""
        ...

    async def start(self, portion: Portion) -> None:
        """Start these runs; returns when that is under way."""
        ...


Way = Callable[[str, str, int], Worker]  # of the URL, the shape, the size of a batch

WAYS: dict[str, Way] = {
    "protocol": lambda url, shape, _: Protocol(url, shape, 10),
    "protocol-1": lambda url, shape, _: Protocol(url, shape, 1),
    "sql": Batches,
}
