"""Between T1 and T4: how far a request has come that has no result yet."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pgnexus.db.database import Database


@dataclass(frozen=True, slots=True)
class RequestProgress:
    """What the workflow knows of a request that was taken up and has not ended.

    ``attempts`` counts how often it was taken up, ``last_error`` is that of the attempt before this one, and
    ``next_try_in`` the seconds until the next one, None when it runs or may run now.
    """

    running: bool
    attempts: int
    last_error: str | None
    next_try_in: float | None

    @classmethod
    async def read(cls, db: Database, request_id: UUID) -> RequestProgress | None:
        """None when no worker has taken it up, or when it has ended."""
        rows = await db.query("request_progress", {"request_id": request_id})
        return cls(*rows[0]) if rows else None

    def __str__(self) -> str:
        told = f"taken up {self.attempts} times" if self.attempts > 1 else "taken up"
        if self.next_try_in is not None:
            told += f", again in {max(self.next_try_in, 0):.0f} s"
        return f"{told}; the last error was: {self.last_error}" if self.last_error else told
