"""`pgnexus top`: looks at the database again and again, and keeps what it saw last."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.watch.view import Spent, View

_SPENT_EVERY = 30.0  # seconds; it reads the books of the month


@dataclass(frozen=True, slots=True)
class Seen:
    """What a frame is made of; ``trouble`` is why the view is an old one, or none at all."""

    view: View | None
    spent: tuple[Spent, Spent] | None
    trouble: str | None = None


class Watcher:
    """Asks the database, never for more than a fifth of the time."""

    def __init__(self, db: Database, *, lease: float, window: float, interval: float) -> None:
        self._db = db
        self._lease = lease
        self._window = window
        self._interval = interval
        self._view: View | None = None
        self._spent: tuple[Spent, Spent] | None = None
        self._spent_at = float("-inf")
        self._adding: asyncio.Task[None] | None = None
        self.pause = interval

    async def once(self) -> Seen:
        """Everything, the sums of day and month too."""
        self._view = await View.read(self._db, lease=self._lease, window=self._window)
        await self._add_up()
        return Seen(self._view, self._spent)

    async def look(self) -> Seen:
        """What is new; the sums of day and month come when they are there."""
        if self._adding is None or self._adding.done():
            if self._adding is not None and not self._adding.cancelled():
                self._adding.exception()  # an outage is told of below
            if time.monotonic() - self._spent_at >= _SPENT_EVERY:
                self._spent_at = time.monotonic()
                self._adding = asyncio.create_task(self._add_up())
        start = time.monotonic()
        try:
            self._view = await View.read(self._db, lease=self._lease, window=self._window)
        except DatabaseUnavailable as error:
            self.pause = self._interval
            return Seen(self._view, self._spent, str(error))
        self.pause = max(self._interval, 4 * (time.monotonic() - start))
        return Seen(self._view, self._spent)

    async def close(self) -> None:
        if self._adding is not None:
            self._adding.cancel()
            await asyncio.gather(self._adding, return_exceptions=True)

    async def _add_up(self) -> None:
        self._spent = await Spent.today_and_this_month(self._db)
        self._spent_at = time.monotonic()
