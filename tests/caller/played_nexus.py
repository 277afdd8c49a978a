"""The nexus side as a test plays it, word by word: it takes a request, streams, breaks off, answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from pgnexus.db.database import Database
from pgnexus.nexus.streams.chunk_stream import ChunkStream
from pgnexus.nexus.streams.chunks import ChunkWriter
from pgnexus.providers.provider import Delta
from tests.system import sql, until


class Part:
    """One claim of one request."""

    def __init__(self, nexus: PlayedNexus, claim: Any) -> None:
        self._nexus = nexus
        self._claim = claim
        self.stream: ChunkStream = nexus.writer.open(claim.run_id, claim.attempt)

    @property
    def asked(self) -> dict[str, Any]:
        """The request as it travelled."""
        return dict(self._claim.input)

    async def say(self, text: str) -> None:
        """Stream a piece that is a chunk of its own."""
        self.stream.put(Delta(text=text))
        await self.stream.flush()

    async def answer(self, text: str | None, **over: Any) -> None:
        """End it with this whole answer."""
        result = {"request_id": str(self._claim.run_id), "status": "success", "response": text, "attempts": 1}
        result |= {"finish_reason": "stop", "model": "m", "provider": "p"} | over
        await self._settle({"outcome": "success", "result": result})

    async def fail(self, kind: str = "bad_request") -> None:
        error = {"type": kind, "message": "no", "retryable": False}
        details = {"request_id": str(self._claim.run_id), "status": "failed", "attempts": 1, "error": error}
        await self._settle({"outcome": "failed", "details": details, "error": "no"})

    async def give_back(self) -> None:
        """Let another claim have it."""
        await self._settle({"outcome": "release", "error": "given back"})

    async def _settle(self, item: dict[str, Any]) -> None:
        claim = self._claim
        whole = {"run_id": str(claim.run_id), "step": claim.step_slug, "attempt": claim.attempt, "delay": 0}
        params = {
            "worker_id": self._nexus.worker_id,
            "items": [json.dumps(whole | {"calls": []} | item)],
            "notify": True,
        }
        rows = await self._nexus.db.query("settle", params)
        assert len(rows) == 1


class PlayedNexus:
    """A worker in the hands of a test."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.worker_id = uuid4()
        self.writer = ChunkWriter(db, largest=1_000_000)

    async def take(self) -> Part:
        """The next request."""
        params = {"worker_id": self.worker_id, "limit": 1, "others": 1}
        [claim] = await until(lambda: self.db.query("take_requests", params))
        return Part(self, claim)

    async def held(self) -> set[UUID]:
        rows = await sql(self.db, "select run_id from pgflow.step_tasks where status = 'started'")
        return {row.run_id for row in rows}


@asynccontextmanager
async def played_nexus(nexus_url: str) -> AsyncIterator[PlayedNexus]:
    """Under the nexus role; alive for as long as the test lasts."""
    db = await Database.open(nexus_url)
    nexus = PlayedNexus(db)
    await sql(
        db,
        "select pgflow.heartbeat(%s, 'llm_request_workflow', 'a test', interval '1 hour')",
        nexus.worker_id,
    )
    try:
        yield nexus
    finally:
        await nexus.writer.close()
        await db.close()
