"""Beside every step: the books of workers that are dead are brought to their end."""

from __future__ import annotations

import logging
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.looper import Looper

log = logging.getLogger(__name__)

_MOST = 500


class Bookkeeper:
    """A loop that any number of workers run.

    It books the calls that dead workers had in flight as `unknown`, at what was reserved for them, and adds calls that
    came late into the books to the results of their requests.
    """

    def __init__(self, db: Database, instance_id: UUID, interval: float) -> None:
        self._db = db
        self._instance_id = instance_id
        self._looper = Looper("bookkeeper", self._round, poll_interval=interval)

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _round(self) -> float | None:
        for row in await self._db.query("bury"):
            if row.instance_id != self._instance_id and row.calls:
                log.warning(
                    "instance %s is gone: %d calls it had in flight are in the books as unknown",
                    *(row.instance_id, row.calls),
                )
        [row] = await self._db.query("amend_results", {"limit": _MOST})
        return 0 if row.amended >= _MOST else None
