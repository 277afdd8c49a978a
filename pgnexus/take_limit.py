"""T2 and T4: how many messages to take at once, when one among them may be poison."""

from __future__ import annotations


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
