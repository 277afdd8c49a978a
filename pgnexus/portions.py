"""T1 and T3: many items in statements that are not too large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

LARGEST_STATEMENT = 16 * 1024 * 1024  # characters; a statement is held in memory, here and in the server


def portions(
    items: Sequence[Item], size: Callable[[Item], int], *, most: int = 1000, largest: int = LARGEST_STATEMENT
) -> Iterator[Sequence[Item]]:
    """``items`` in runs of at most ``most``, and of at most ``largest`` by ``size`` unless one alone is larger.

    >>> [list(portion) for portion in portions(["a", "bb", "ccc", "d"], len, most=3, largest=3)]
    [['a', 'bb'], ['ccc'], ['d']]
    """
    start = total = 0
    for end, item in enumerate(items):
        total += size(item)
        if end > start and (end - start == most or total > largest):
            yield items[start:end]
            start, total = end, size(item)
    if start < len(items):
        yield items[start:]
