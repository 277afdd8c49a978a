"""The ways of doing the same work, each a kind of worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple
from typing import Protocol as Shape

from benchmarks.flow.batches import Batches
from benchmarks.flow.cases import Portion
from benchmarks.flow.executors import Executors
from benchmarks.flow.protocol import Protocol


class Worker(Shape):
    """What a worker process has of its way."""

    def working(self) -> AbstractAsyncContextManager[None]:
        """Work for the duration of the block."""
        ...

    async def start(self, portion: Portion) -> None:
        """Start these runs; returns when that is under way."""
        ...


class Way(NamedTuple):
    """How its worker is made, of the URL, the shape and the size of a batch; whether that worker defines the flow."""

    worker: Callable[[str, str, int], Worker]
    defines: bool = False


WAYS = {
    "protocol": Way(lambda url, shape, _: Protocol(url, shape, 10)),
    "protocol-1": Way(lambda url, shape, _: Protocol(url, shape, 1)),
    "sql": Way(Batches),
    "python": Way(lambda url, shape, _: Executors(url, shape), defines=True),
}
