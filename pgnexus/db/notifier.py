"""After each transaction of a request: one NOTIFY at once, then one for a window's worth of others.

NOTIFY takes a lock on the whole database while it commits, so a busy process must not send one with
every transaction.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import psycopg

from pgnexus.db.database import Database
from pgnexus.errors import PgnexusError

log = logging.getLogger(__name__)

WINDOW = 0.002  # seconds; less than one call after another takes, so that these never wait for it
_IDS_A_NOTIFY = 200  # a payload of 8,000 bytes would be an error


class Notifier:
    """Coalesces this process's NOTIFYs by channel.

    Before a transaction that others should hear of, ask `claim`; when it says False, call `committed` after
    the commit::

        notify = notifier.claim(channel)
        ...  # the transaction; with pg_notify in it if notify
        if not notify:
            notifier.committed(channel)
    """

    def __init__(self, db: Database, *, window: float = WINDOW) -> None:
        self._db = db
        self._window = window
        self._open: dict[str, asyncio.TimerHandle] = {}
        self._due: dict[str, list[str]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def claim(self, channel: str) -> bool:
        """True: this transaction shall NOTIFY itself, and a window begins. False: tell `committed` after it."""
        if channel in self._open:
            return False
        self._begin(channel)
        return True

    def unclaim(self, channel: str) -> None:
        """The transaction that `claim` said True for had nothing to tell: the next one may NOTIFY at once."""
        window = self._open.pop(channel, None)
        if window is not None:
            window.cancel()
            if channel in self._due:
                self._begin(channel)
                self._send(channel)

    def committed(self, channel: str, ids: Sequence[str] = ()) -> None:
        """A transaction that did not NOTIFY is committed: one is sent at once, or when the window ends.

        ``ids`` are gathered into the payload, which is empty when none are given.
        """
        self._due.setdefault(channel, []).extend(ids)
        if channel not in self._open:
            self._begin(channel)
            self._send(channel)

    async def close(self) -> None:
        """Send what is due, and wait until it is sent."""
        for handle in self._open.values():
            handle.cancel()
        self._open.clear()
        for channel in tuple(self._due):
            self._send(channel)
        while self._sending:
            await asyncio.wait(self._sending)

    def _begin(self, channel: str) -> None:
        loop = asyncio.get_running_loop()
        self._open[channel] = loop.call_later(self._window, self._end, channel)

    def _end(self, channel: str) -> None:
        del self._open[channel]
        if channel in self._due:
            self._begin(channel)
            self._send(channel)

    def _send(self, channel: str) -> None:
        task = asyncio.create_task(self._notify(channel, self._due.pop(channel)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _notify(self, channel: str, ids: list[str]) -> None:
        try:
            for start in range(0, len(ids) or 1, _IDS_A_NOTIFY):
                payload = ",".join(ids[start : start + _IDS_A_NOTIFY])
                await self._db.query("notify", {"channel": channel, "payload": payload})
        except (PgnexusError, psycopg.Error) as error:  # listeners look for themselves after an outage
            log.debug("NOTIFY %s was not sent: %s", channel, error)
