"""Between the two sides of a request: the queues, by pgmq's SQL functions."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from psycopg import errors
from pydantic_core import to_json

from pgnexus.db.database import Database
from pgnexus.errors import InvalidRequest

_NAME = re.compile(r"[a-z0-9_]{1,47}")

Payload = Mapping[str, Any] | str


class QueueMessage(NamedTuple):
    """One message as read: ``read_ct`` counts the reads, ``vt`` is when it becomes visible again."""

    msg_id: int
    read_ct: int
    enqueued_at: datetime
    vt: datetime
    message: Any
    headers: dict[str, Any] | None


class QueueMetrics(NamedTuple):
    """``queue_length`` counts all messages, ``visible`` those that may be read now; ages in seconds."""

    queue_name: str
    queue_length: int
    visible: int
    oldest_age: int | None
    newest_age: int | None
    total_messages: int


def check_queue_name(name: str) -> str:
    """``name`` when pgmq takes it: 1 to 47 of a-z, 0-9 and _. Raises `InvalidRequest`."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"queue name {name[:100]!r}: 1 to 47 lower-case letters, digits and underscores")
    return name


class PgmqClient:
    """The operations on queues that pgnexus uses; each call is one statement and one commit."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ensure_queue(self, queue: str) -> bool:
        """Create the queue unless it is there; whether it was created. Any number may try at once."""
        check_queue_name(queue)
        if await self._db.query("pgmq_queue_exists", {"queue": queue}):
            return False
        await self._db.query("pgmq_create", {"queue": queue})
        return True

    async def send_message(
        self, queue: str, message: Payload, *, headers: Payload | None = None, delay: float = 0
    ) -> int:
        """Put one message (an object, or its JSON text); its id. ``delay`` is in seconds."""
        [msg_id] = await self.send_messages(
            queue, [message], headers=None if headers is None else [headers], delay=delay
        )
        return msg_id

    async def send_messages(
        self,
        queue: str,
        messages: Sequence[Payload],
        *,
        headers: Sequence[Payload] | None = None,
        delay: float = 0,
    ) -> list[int]:
        """Put many messages in one statement; their ids, in order."""
        if not messages:
            return []
        params = {
            "messages": [_json(message) for message in messages],
            "headers": None if headers is None else [_json(header) for header in headers],
            "delay": timedelta(seconds=delay),
        }
        async with _naming(queue):
            return [row.msg_id for row in await self._db.query("pgmq_send", {"queue": queue, **params})]

    async def read_messages(self, queue: str, qty: int = 1, *, vt: int = 30) -> list[QueueMessage]:
        """Up to ``qty`` visible messages, hidden from other readers for ``vt`` whole seconds."""
        async with _naming(queue):
            rows = await self._db.query("pgmq_read", {"queue": queue, "qty": qty, "vt": vt})
        return [QueueMessage(*row) for row in rows]

    async def ack_message(self, queue: str, msg_id: int) -> bool:
        """Delete one message; False when it was gone."""
        return bool(await self.ack_messages(queue, [msg_id]))

    async def ack_messages(self, queue: str, msg_ids: Sequence[int]) -> list[int]:
        """Delete messages; the ids of those that were there."""
        async with _naming(queue):
            rows = await self._db.query("pgmq_delete", {"queue": queue, "msg_ids": list(msg_ids)})
        return [row.msg_id for row in rows]

    async def set_vt(self, queue: str, msg_ids: Sequence[int], seconds: float) -> list[int]:
        """Hide messages until ``seconds`` from now (0: visible at once); the ids that were there."""
        params = {"queue": queue, "msg_ids": list(msg_ids), "delay": timedelta(seconds=seconds)}
        async with _naming(queue):
            return [row.msg_id for row in await self._db.query("pgmq_set_vt", params)]

    async def archive(self, queue: str, msg_ids: Sequence[int]) -> list[int]:
        """Move messages to the queue's archive; the ids of those that were there."""
        async with _naming(queue):
            rows = await self._db.query("pgmq_archive", {"queue": queue, "msg_ids": list(msg_ids)})
        return [row.msg_id for row in rows]

    async def metrics(self, queue: str) -> QueueMetrics:
        """Depth and ages of one queue; counts its messages, so it takes a while on a long one."""
        async with _naming(queue):
            [row] = await self._db.query("pgmq_metrics", {"queue": queue})
        return QueueMetrics(*row)


@asynccontextmanager
async def _naming(queue: str) -> AsyncIterator[None]:
    check_queue_name(queue)
    try:
        yield
    except errors.UndefinedTable:
        raise InvalidRequest(f"there is no queue named {queue!r}") from None


def _json(payload: Payload) -> str:
    return payload if isinstance(payload, str) else to_json(payload).decode()
