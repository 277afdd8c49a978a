"""Cancel: wherever a request is, it ends; a call in flight is cut off and booked."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from aiohttp import web
from provider_server import answer, served
from system import QUEUES, messages, running, sql, until

from pgnexus.db.database import Database


class Slow:
    """A vendor that takes its time, and notices who goes away."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self.calls = 0
        self.url = ""

    async def take(self, _: web.Request) -> web.Response:
        self.calls += 1
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return web.json_response(answer("too late"))


@pytest.fixture
async def slow():
    vendor = Slow()
    async with served(vendor.take) as vendor.url:
        yield vendor


async def happened(event: asyncio.Event) -> None:
    async with asyncio.timeout(15):
        await event.wait()


async def booked(db: Database) -> list[tuple[str, bool]]:
    async def there() -> list[tuple[str, bool]]:
        return await sql(db, "select outcome, estimated from nexus.attempts")

    return await until(there)  # type: ignore[no-any-return]


async def nothing_is_left(db: Database) -> None:
    async def over() -> bool:
        [row] = await sql(
            db,
            """select (select count(*) from pgflow.runs where status = 'started')
                      + (select count(*) from nexus.parked) + (select count(*) from nexus.cancellations) as many""",
        )
        return row.many == 0 and not any([await messages(db, queue) for queue in QUEUES])

    await until(over)


async def test_a_call_in_flight_is_cut_off_and_booked(database_url, db, slow):
    async with running(database_url, slow.url) as service:
        handle = await service.enqueue("simple", "Hello")
        await happened(slow.asked)
        assert await handle.cancel()
        await happened(slow.left)
        assert await handle.status() == "cancelled"
        assert [row.outcome for row in await booked(db)] == ["cancelled"]
        await nothing_is_left(db)
    assert slow.calls == 1


async def test_also_when_nobody_could_tell_the_worker(database_url, db, slow):
    async with running(database_url, slow.url) as service:
        handle = await service.enqueue("simple", "Hello")
        await happened(slow.asked)
        await sql(
            db, "select pgflow.cancel_runs(%s)", [handle.request_id]
        )  # without the NOTIFY of nexus_api.cancel
        await happened(slow.left)
        assert [row.outcome for row in await booked(db)] == ["cancelled"]

        async def told() -> bool:
            return await handle.status() == "cancelled"

        await until(told)


async def test_a_call_whose_request_others_have_is_given_up_and_booked(database_url, db, slow):
    async with running(database_url, slow.url) as service:
        handle = await service.enqueue("simple", "Hello")
        await happened(slow.asked)
        await sql(
            db,
            "update pgflow.step_tasks set last_worker_id = %s, attempts_count = 2 where run_id = %s",
            uuid4(),
            handle.request_id,
        )
        await happened(slow.left)
        assert [row.outcome for row in await booked(db)] == ["cancelled"]
        [task] = await sql(db, "select status, attempts_count from pgflow.step_tasks")
        assert task == ("started", 2)


async def test_one_that_waits_for_its_retry(database_url, db, llmock):
    llmock.fail(500, times=None)
    async with running(database_url, llmock.base_url(), retry_base_delay=60) as service:
        handle = await service.enqueue("simple", "Hello")

        async def waits() -> bool:
            return bool(await sql(db, "select 1 from pgflow.step_tasks where not_before < 'infinity'"))

        await until(waits)
        asked = len(llmock.requests)
        assert await handle.cancel()
        assert await handle.status() == "cancelled"
        await nothing_is_left(db)
    assert len(llmock.requests) == asked


async def test_one_that_is_parked(database_url, db, slow):
    limits = {"openai": {"requests_per_minute": 1}}
    async with running(database_url, slow.url, limits=limits) as service:
        first = await service.enqueue("simple", "Hello")
        await happened(slow.asked)
        second = await service.enqueue("simple", "Hello")

        async def waits() -> bool:
            return bool(await sql(db, "select 1 from nexus.parked where run_id = %s", second.request_id))

        await until(waits)
        assert await second.cancel()
        assert await second.status() == "cancelled"
        assert await sql(db, "select 1 from nexus.parked") == []
        assert await first.cancel()
        await happened(slow.left)
        await nothing_is_left(db)
    assert slow.calls == 1


async def test_one_that_nobody_has_taken_up(database_url, db, llmock):
    async with running(database_url, nexus=False) as service:
        handle = await service.enqueue("simple", "Hello")
        assert await handle.cancel()
        assert await handle.status() == "cancelled"
    async with running(database_url, llmock.base_url()):
        await nothing_is_left(db)
    assert llmock.requests == []


async def test_a_worker_that_drains_cuts_off_what_does_not_finish_and_books_it(database_url, db, slow):
    async with running(database_url, slow.url, drain_timeout=0.0) as service:
        await service.enqueue("simple", "Hello")
        await happened(slow.asked)
    await happened(slow.left)
    assert [row.outcome for row in await booked(db)] == ["cancelled"]
    [task] = await sql(db, "select status from pgflow.step_tasks")
    assert task.status == "queued"
