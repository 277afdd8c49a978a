"""T2 and T4: how many messages to take at once, when one among them may be poison."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from pgnexus.db.connection import is_data_fault


class TakeLimit:
    """Halves after each transaction that failed for its data, until the culprit stands alone; then grows again.

    >>> limit = TakeLimit(4)
    >>> [limit.halve(), limit.size, limit.halve(), limit.size, limit.halve()]
    [False, 2, False, 1, True]
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.size = maximum

    def halve(self) -> bool:
        """After a failure; True when it was one message alone, so that this message is the culprit."""
        alone = self.size == 1
        self.size = max(1, self.size // 2)
        return alone

    def grow(self) -> None:
        """After a success."""
        self.size = min(self._maximum, self.size * 2)

    async def take(
        self, query: Awaitable[list[Any]], reject: Callable[[], Awaitable[None]]
    ) -> list[Any] | None:
        """The rows of a query that takes up to ``size`` messages; None when fewer are to be tried.

        ``reject`` is called for the one message that cannot be taken even alone. Other faults than the
        data's are raised.
        """
        try:
            rows = await query
        except psycopg.Error as error:
            if not is_data_fault(error):
                raise
            if self.halve():
                await reject()
            return None
        self.grow()
        return rows
