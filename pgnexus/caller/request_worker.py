"""T1: requests into durable jobs, many callers in one transaction, or one in the caller's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from pgnexus.batcher import Batcher
from pgnexus.caller.draft import RequestDraft
from pgnexus.caller.joined import JoinedConnection, refusal
from pgnexus.caller.results import JobStatus
from pgnexus.db.database import Database
from pgnexus.db.notifier import Notifier
from pgnexus.errors import DatabaseUnavailable
from pgnexus.messages import REQUESTS_CHANNEL
from pgnexus.portions import portions

MAX_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that is stored; ``created`` is False when the same one had been stored before."""

    request_id: UUID
    status: JobStatus
    created: bool


class LlmRequestWorker:
    """Turns requests into durable jobs; what is asked at the same time is stored together."""

    def __init__(self, db: Database, notifier: Notifier) -> None:
        self._db = db
        self._notifier = notifier
        self._batcher: Batcher[RequestDraft, Accepted] = Batcher(self._store, max_batch=MAX_BATCH)
        self._home = ""

    async def start(self) -> None:
        """Learn which installation this is: asked in the midst of callers' transactions, it could find that these hold
        every connection that a pooler has.
        """
        [row] = await self._db.query("home")
        self._home = row.home

    async def enqueue_llm_request(self, draft: RequestDraft, *, connection: Any = None) -> Accepted:
        """Store one request; with ``connection`` in the transaction that is open there.

        Raises `InvalidRequest` for a request_id or idempotency_key used before with another body and for a
        ``reply_to`` that names no queue; `DatabaseUnavailable`, after which the same request may be sent again.
        """
        if connection is not None:
            [accepted] = await self.enqueue_llm_requests([draft], connection=connection)
            return accepted
        try:
            return await self._batcher.submit(draft)
        except psycopg.Error as error:
            raise refusal(error) from error

    async def enqueue_llm_requests(
        self, drafts: Sequence[RequestDraft], *, connection: Any = None
    ) -> list[Accepted]:
        """Store many requests, a thousand a round trip. Each thousand is accepted as a whole or not at all;
        with ``connection`` all of them are.
        """
        if connection is not None:
            return await self._join(drafts, JoinedConnection(connection))
        try:
            return await self._store(drafts)
        except psycopg.Error as error:
            raise refusal(error) from error

    async def flushed(self) -> None:
        """Wait until what is on its way to the database is there, or has failed."""
        await self._batcher.flushed()

    async def close(self) -> None:
        await self._batcher.close()

    async def _store(self, drafts: Sequence[RequestDraft]) -> list[Accepted]:
        return [
            accepted
            for part in portions(drafts, _size, most=MAX_BATCH)
            for accepted in await self._store_at_once(part)
        ]

    async def _store_at_once(self, drafts: Sequence[RequestDraft]) -> list[Accepted]:
        params = {
            "requests": [draft.body for draft in drafts],
            "notify": self._notifier.claim(REQUESTS_CHANNEL),
        }
        try:
            rows = await self._db.query("enqueue", params)
        except DatabaseUnavailable:
            # Whether it was committed is unknown; the ids make it safe to say it once more.
            rows = await self._db.query("enqueue", params)
        if not params["notify"]:
            self._notifier.committed(REQUESTS_CHANNEL)
        return [Accepted(row.request_id, row.status, row.created) for row in rows]

    async def _join(self, drafts: Sequence[RequestDraft], connection: JoinedConnection) -> list[Accepted]:
        async with connection.joined(self._home):
            rows = [
                row
                for part in portions(drafts, _size, most=MAX_BATCH)
                for row in await connection.enqueue([draft.body for draft in part])
            ]
        return [Accepted(UUID(str(row[1])), row[2], row[3]) for row in rows]


def _size(draft: RequestDraft) -> int:
    return len(draft.body)
