"""Nexus side, beside `route_llm`: pieces of answers into the database as they come, many streams in one commit.

Nothing here delays or fails a call. What is not stored in time is in the stored answer all the same, from which a
reader takes what it has missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from uuid import UUID

import psycopg

from pgnexus.backoff import backoff
from pgnexus.db.connection import is_data_fault
from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.nexus.streams.chunk_stream import ChunkStream, Flush
from pgnexus.portions import portions

log = logging.getLogger(__name__)

# Seconds between two commits of a stream: 18 a second, and with the first and the last piece at most 20. All streams
# of a process keep the same time, so that their commits coincide.
TICK = 0.056
_LAST_BACKOFF = 1.0
_TRIES = 5  # of what fails for the moment, an outage aside
_CLOSING = 2.0


class ChunkWriter:
    """Stores the streams of one process. The first piece of a stream goes at once, later ones with the next tick."""

    def __init__(self, db: Database, *, largest: int) -> None:
        """``largest`` is how many characters of one answer are stored as chunks at most."""
        self._db = db
        self._largest = largest
        self._streams: dict[UUID, ChunkStream] = {}  # those that have something to store
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._opened = 0

    def open(self, request_id: UUID, attempt: int) -> ChunkStream:
        """The stream of one claim of a request; ``attempt`` is its fence."""
        self._opened += 1
        return ChunkStream(request_id, attempt, self._opened, self._largest, self._wake)

    async def close(self) -> None:
        """Store what there is, if the database takes it within two seconds."""
        self._closed = True
        if self._task is None:
            return
        self._woken.set()
        _, late = await asyncio.wait([self._task], timeout=_CLOSING)
        for task in late:
            task.cancel()
            await asyncio.wait([task])

    def _wake(self, stream: ChunkStream) -> None:
        """It has something to store."""
        if self._closed:
            stream.refuse()
            return
        other = self._streams.setdefault(stream.request_id, stream)
        if other is not stream:  # two claims of this process, of which the earlier has ended
            newer, older = (stream, other) if stream.serial > other.serial else (other, stream)
            self._streams[stream.request_id] = newer
            older.refuse()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="chunk writer")
        self._woken.set()

    async def _run(self) -> None:
        while self._streams or not self._closed:
            self._woken.clear()
            tick = self._tick()
            due = [s for s in self._streams.values() if s.due <= tick or s.hurried or self._closed]
            if due:
                await self._store(due, tick)
            else:
                await self._until_due()

    async def _until_due(self) -> None:
        pause = None
        if self._streams:
            first = min(stream.due for stream in self._streams.values())
            pause = max(0.0, first * TICK - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(pause):
                await self._woken.wait()
        except TimeoutError:
            pass

    @staticmethod
    def _tick() -> int:
        # a timer may fire a little before its time
        return int((asyncio.get_running_loop().time() + 0.001) / TICK)

    async def _store(self, streams: list[ChunkStream], tick: int) -> None:
        flushes = []
        for stream in streams:
            del self._streams[stream.request_id]
            if flush := stream.take(tick + 1):
                flushes.append(flush)
        for portion in portions(flushes, lambda flush: flush.size):
            await self._store_all(portion)
        for flush in flushes:
            flush.stream.settle()

    async def _store_all(self, flushes: Sequence[Flush]) -> None:
        """Store them, however long the database is away; a flush that it refuses ends its stream's chunks."""
        tries = 0
        while True:
            try:
                rows = await self._db.query("store_chunks", _params(flushes))
            except DatabaseUnavailable as error:
                log.debug("chunks wait for the database: %s", error)
            except Exception as error:
                if is_data_fault(error) or not isinstance(error, psycopg.Error) or tries == _TRIES:
                    await self._after_fault(flushes, error)
                    return
            else:
                following = {row.claim: row.next for row in rows}
                for flush in flushes:
                    flush.stream.stored(following.get(flush.stream.claim))
                return
            tries += 1
            await asyncio.sleep(backoff(tries, last=_LAST_BACKOFF))

    async def _after_fault(self, flushes: Sequence[Flush], error: Exception) -> None:
        if len(flushes) > 1 and is_data_fault(error):
            middle = len(flushes) // 2
            await self._store_all(flushes[:middle])
            await self._store_all(flushes[middle:])
            return
        log.error("request %s: its chunks cannot be stored", flushes[0].stream.request_id, exc_info=error)
        for flush in flushes:
            flush.stream.refuse()


def _params(flushes: Sequence[Flush]) -> dict[str, list[object]]:
    return {
        "request_ids": [flush.stream.request_id for flush in flushes],
        "claims": [flush.stream.claim for flush in flushes],
        "attempts": [flush.stream.attempt for flush in flushes],
        "numbers": [flush.number for flush in flushes],
        "discards": [flush.discard for flush in flushes],
        "texts": [flush.text for flush in flushes],
        "reasonings": [flush.reasoning for flush in flushes],
        "tool_calls": [flush.tool_calls for flush in flushes],
    }
