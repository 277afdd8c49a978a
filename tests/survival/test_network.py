"""Never lost, never doubled, and nobody waits for ever: a network that hangs, or loses the answer to a commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg.conninfo import conninfo_to_dict

from chaos.proxy import Proxy
from chaos.server import HOST
from pgnexus.db.database import Database
from tests.system import running, sql, started, until


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    """A proxy before the server."""
    target = conninfo_to_dict(database_url)
    proxy = Proxy(int(str(target["port"])), str(target["host"]))
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
def proxied_url(proxy: Proxy, database_url: str) -> str:
    """The test's database, through the proxy."""
    return f"postgresql://postgres@{HOST}:{proxy.port}/{conninfo_to_dict(database_url)['dbname']}"


async def test_a_worker_whose_connections_hang_loses_its_work_and_cannot_finish_it(
    proxy: Proxy,
    proxied_url: str,
    database_url: str,
    db: Database,
    llmock: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    llmock.delay(1.0, times=None)
    caplog.set_level(logging.INFO, logger="pgnexus")
    async with (
        running(database_url, nexus=False) as service,
        started(proxied_url, llmock.base_url(), caller=False, worker_lease=1.0) as hung,
    ):
        handle = await service.enqueue("simple", "Hello")
        await until(lambda: _called(llmock, 1))
        proxy.hang(6)
        async with started(database_url, llmock.base_url(), caller=False, worker_lease=1.0):
            assert (await handle.result(timeout=30)).ok
            await until(lambda: _said(caplog, "had been taken from this worker"))
        assert hung.nexus is not None
        await until(lambda: _alive(hung.nexus.registry))
    assert len(llmock.requests) == 2
    assert [row.status for row in await sql(db, "select status from pgnexus.job_results")] == ["success"]


async def test_a_commit_whose_answer_is_lost_is_said_again(
    proxy: Proxy, proxied_url: str, database_url: str, db: Database, llmock: Any
) -> None:
    request_id = uuid4()
    async with (
        started(database_url, llmock.base_url(), caller=False),
        running(proxied_url, nexus=False) as service,
    ):
        proxy.mute(0.3)
        handle = await service.enqueue("simple", "Hello", request_id=request_id)
        assert (handle.request_id, (await handle.result(timeout=30)).ok) == (request_id, True)
        proxy.mute(0.3)
        assert (await service.call("simple", "Again")).ok
    assert len(llmock.requests) == 2
    assert len(await sql(db, "select 1 from pgnexus.job_results where status = 'success'")) == 2


async def test_who_stops_does_not_wait_for_a_database_that_is_gone(
    proxy: Proxy, proxied_url: str, database_url: str, llmock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    llmock.delay(0.5, times=None)
    async with running(database_url, nexus=False) as service:
        async with asyncio.timeout(60):
            async with started(proxied_url, llmock.base_url(), caller=False, worker_lease=1.0):
                handle = await service.enqueue("simple", "Hello")
                await until(lambda: _called(llmock, 1))
                await proxy.close()
        assert "1 requests are left to others" in caplog.text
        async with started(database_url, llmock.base_url(), caller=False, worker_lease=1.0):
            assert (await handle.result(timeout=30)).ok


async def _called(llmock: Any, times: int) -> bool:
    return len(llmock.requests) >= times


async def _said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def _alive(registry: Any) -> bool:
    return bool(registry.is_alive())
