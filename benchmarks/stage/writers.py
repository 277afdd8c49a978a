"""Many coroutines that share a row of numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable


async def share_out(numbers: Iterable[int], writers: int, do: Callable[[int], Awaitable[object]]) -> None:
    """Do it for each number, so many at a time."""
    left = iter(numbers)

    async def writer() -> None:
        for number in left:
            await do(number)

    await asyncio.gather(*(writer() for _ in range(writers)))
