"""The whole way in one process: a caller side, a nexus side, and a provider that somebody else plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pgnexus.app import App
from pgnexus.caller.service import LLMService
from pgnexus.db.database import Database
from pgnexus.settings import Settings

LANES = ("ai_requests_interactive", "ai_requests", "ai_requests_batch")
QUEUES = (*LANES, "ai_results", "llm_request_workflow")


def fast(database_url: str, provider_url: str | None = None, **settings: Any) -> Settings:
    """Settings that wait for nothing longer than a test can; all calls go to ``provider_url``, if given."""
    given: dict[str, Any] = {
        "database_url": database_url,
        "poll_interval": 1.0,
        "heartbeat_interval": 0.2,
        "worker_lease": 3.0,
        "retry_base_delay": 0.05,
        "drain_timeout": 0.5,
        "router_retries": 0,
        "pool_size": 4,
        "local_model": False,
    }
    if provider_url is not None:
        given["default_provider"] = "openai"
        given["providers"] = {"openai": {"base_url": provider_url, "needs_key": False}}
    return Settings.load(**given | settings)


@asynccontextmanager
async def started(
    database_url: str,
    provider_url: str | None = None,
    *,
    caller: bool = True,
    nexus: bool | None = True,
    **settings: Any,
) -> AsyncIterator[App]:
    """A running `App`: ``app.service`` is its caller side, ``app.nexus`` its nexus side."""
    app = App(fast(database_url, provider_url, **settings), caller=caller, nexus=nexus)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


@asynccontextmanager
async def running(
    database_url: str, provider_url: str | None = None, *, nexus: bool | None = True, **settings: Any
) -> AsyncIterator[LLMService]:
    """A running `LLMService`, with a nexus side beside it unless ``nexus`` is False."""
    async with started(database_url, provider_url, nexus=nexus, **settings) as app:
        yield app.service


async def until(condition: Callable[[], Awaitable[Any]], within: float = 15.0) -> Any:
    """Look again and again for what nobody tells us of; the first true value of ``condition``."""
    async with asyncio.timeout(within):
        while not (value := await condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return value


async def sql(db: Database, text: str, *params: Any) -> list[Any]:
    """The rows of one statement."""
    async with db.connection() as connection:
        cursor = await connection.execute(text, params or None)
        return await cursor.fetchall() if cursor.description else []


async def put(db: Database, queue: str, *messages: Any) -> None:
    """Put JSON texts on a queue as anybody could, with plain SQL, and say so."""
    await sql(db, "select pgmq.send_batch(%s, %s::text[]::jsonb[])", queue, list(messages))
    channel = "pgnexus_results" if queue == "ai_results" else "pgnexus_requests"
    await sql(db, "select pg_notify(%s, '')", channel)


async def messages(db: Database, queue: str) -> list[Any]:
    """What lies on a queue, the oldest first."""
    return [row.message for row in await sql(db, f"select message from pgmq.q_{queue} order by msg_id")]


async def answered(db: Database, queue: str, count: int = 1) -> list[Any]:
    """What lies on a queue as soon as there are ``count`` messages."""

    async def there() -> list[Any] | None:
        found = await messages(db, queue)
        return found if len(found) >= count else None

    return await until(there)  # type: ignore[no-any-return]


async def archived(db: Database, queue: str) -> list[Any]:
    """(message, reason) of what lies in a queue's archive."""
    rows = await sql(
        db, f"select message, headers ->> 'reason' as reason from pgmq.a_{queue} order by msg_id"
    )
    return [(row.message, row.reason) for row in rows]


async def nothing_stored(db: Database) -> bool:
    """Whether no request has left a trace."""
    [row] = await sql(
        db,
        """select (select count(*) from pgnexus.job_results) + (select count(*) from pgnexus.scheduled_requests)
                  + (select count(*) from pgnexus.idempotency_keys) + (select count(*) from pgflow.runs) as traces""",
    )
    return row.traces == 0 and not any([await messages(db, queue) for queue in QUEUES])
