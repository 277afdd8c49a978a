"""Nexus side, under our own wires: one request and its answer, as the bytes of it come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from multidict import CIMultiDict

if TYPE_CHECKING:
    from pgnexus.providers.http11 import Connection

_MOST_HELD: Final = 256 * 1024  # bytes nobody has read yet, above which the vendor waits


class CutShort(ConnectionError):
    """The connection broke in the middle of an answer."""


class Exchange:
    """One request and its answer; ``status`` and ``headers`` are those of the answer, once it has begun."""

    __slots__ = ("_connection", "_error", "_pieces", "_size", "_waiter", "ended", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.ended = False
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()

    def at_eof(self) -> bool:
        """Whether the whole answer came and was read."""
        return self.ended and not self._pieces

    async def begun(self) -> None:
        """Return when status and headers are there."""
        while not self.status:
            await self._something()

    async def readany(self) -> bytes:
        """The bytes that have come, at least one; none at the end of the answer.

        Raises TimeoutError, `CutShort`, another OSError, or ValueError for what is not HTTP.
        """
        while not self._pieces and not self.ended:
            await self._something()
        pieces, self._pieces = self._pieces, []
        if self._size > _MOST_HELD and not self.ended:
            self._connection.resume()
        self._size = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Leave; an answer that has not ended costs its connection."""
        if not self.ended:
            self._connection.abort()

    async def _something(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        if self._error is None and not self.ended:
            self._error = error
            self.wake()

    def keep(self, piece: bytes) -> bool:
        """Keep a piece of the body; whether there is enough for now."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._size > _MOST_HELD
