"""Python workers: `pgnexus.executor` with its default settings, as an application has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pgnexus
from benchmarks.flow.cases import Portion
from benchmarks.flow.flows import FLOWS

_LARGEST = 16 * 1024 * 1024  # bytes: the list of 8,000 elements of 1 kB is over the default


class Executors:
    """One process with the flow, which starts runs and works at them."""

    def __init__(self, url: str, shape: str) -> None:
        self._url = url
        self._flow = FLOWS[shape]
        self._executor: pgnexus.Executor

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        settings = pgnexus.Settings.load(database_url=self._url, max_message_bytes=_LARGEST)
        async with pgnexus.executor(self._flow, settings=settings, nexus=False) as self._executor:
            yield

    async def start(self, portion: Portion) -> None:
        """All at once, as many callers would."""
        await asyncio.gather(*(self._executor.start(self._flow, given) for given in portion.inputs()))
