"""Where readers of streams sleep: who reads which request in this process, and one query for all that have news."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from pgnexus.caller.chunk import StoredChunk
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.looper import Looper
from pgnexus.messages import CHUNKS_CHANNEL

_AT_ONCE = 100  # chunks of one stream
_AHEAD = 500  # chunks that are read ahead of a reader who takes his time
_LOOK_AGAIN = 1.0  # seconds, once a stream has begun


class Feed:
    """The chunks of one request as they are read; ``changed`` is set when there are more, or no more will come."""

    def __init__(self, request_id: UUID) -> None:
        self.request_id = request_id
        self.rows: deque[StoredChunk] = deque()
        self.changed = asyncio.Event()
        self.after = 0
        self.news = True
        self.draining = False  # read on until there is no more
        self.drained = False

    def add(self, row: StoredChunk) -> None:
        self.rows.append(row)
        self.after = row.number
        self.changed.set()

    @property
    def wants(self) -> bool:
        return len(self.rows) < _AHEAD and not self.drained


class ChunkFeeds:
    """The streams that somebody in this process reads."""

    def __init__(self, db: Database, listener: Listener, *, poll_interval: float) -> None:
        self._db = db
        self._feeds: dict[str, set[Feed]] = {}
        self._again = False  # look at all, not only at those with news
        self._looked = float("-inf")
        self._pause = min(_LOOK_AGAIN, poll_interval)
        self._looper = Looper("stream reader", self._look, poll_interval=poll_interval)
        self._poll_interval = poll_interval
        listener.subscribe(CHUNKS_CHANNEL, self._notified)

    def start(self) -> None:
        self._looper.start()

    async def stop(self) -> None:
        """Whoever reads on gets the rest from the stored answer, if that is here."""
        await self._looper.stop()
        for readers in self._feeds.values():
            for feed in readers:
                feed.drained = True
                feed.changed.set()

    @contextmanager
    def open(self, request_id: UUID) -> Iterator[Feed]:
        """A feed of the request's chunks from the first on."""
        feed, key = Feed(request_id), str(request_id)
        self._feeds.setdefault(key, set()).add(feed)
        try:
            yield feed
        finally:
            others = self._feeds.get(key, set())
            others.discard(feed)
            if not others:
                self._feeds.pop(key, None)

    def look(self, feed: Feed) -> None:
        """There may be chunks already, or room for more."""
        feed.news = True
        self._looper.wake()

    def drain(self, feed: Feed) -> None:
        """The request has ended: read what is left, then say so."""
        feed.draining = True
        self.look(feed)

    def _notified(self, payload: str) -> None:
        if not self._feeds:
            return
        if not payload:  # some were not told: the listener was away
            self._again = True
            self._looper.wake()
            return
        named = self._feeds.keys() & payload.split(",")
        for key in named:
            for feed in self._feeds[key]:
                feed.news = True
        if named:
            self._looper.wake()

    async def _look(self) -> float | None:
        if not self._feeds:
            return None
        now = asyncio.get_running_loop().time()
        feeds = [feed for readers in self._feeds.values() for feed in readers if feed.wants]
        begun = any(feed.after for feed in feeds)
        pause = self._pause if begun else self._poll_interval
        if not self._again and now - self._looked < pause:
            feeds = [feed for feed in feeds if feed.news]
        else:
            self._again, self._looked = False, now
        if feeds:
            await self._read(feeds)
        return 0 if any(feed.news and feed.wants for feed in feeds) else pause

    async def _read(self, feeds: list[Feed]) -> None:
        draining = [feed for feed in feeds if feed.draining]
        for feed in feeds:
            feed.news = False
        params = {
            "request_ids": [feed.request_id for feed in feeds],
            "after": [feed.after for feed in feeds],
            "limit": _AT_ONCE,
        }
        try:
            rows = await self._db.query("read_streams", params)
        except BaseException:
            for feed in feeds:
                feed.news = True
            raise
        counts = Counter(row.place for row in rows)
        for row in rows:
            feeds[row.place - 1].add(StoredChunk(*row[1:]))
        for place, feed in enumerate(feeds, 1):
            if counts[place] == _AT_ONCE:
                feed.news = True  # there may be more
        for feed in draining:
            if not feed.news:
                feed.drained = True
                feed.changed.set()
