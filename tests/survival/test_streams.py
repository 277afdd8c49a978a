"""Streams while workers, databases and readers are killed, frozen or cut off: a reader ends with the stored answer.

Fifty readers at once do as they are told: they forget what is discarded, and keep the rest.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from pgnexus.caller.service import LLMService
from pgnexus.caller.stream import ResultStream
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from tests.streaming_vendor import StreamingVendor, streaming_vendor
from tests.survival.processes import restart, up
from tests.system import running, sql, until

READERS = 50
FAST = {
    "PGNEXUS_POLL_INTERVAL": "1",
    "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
    "PGNEXUS_WORKER_LEASE": "2",
    "PGNEXUS_DEFAULT_PROVIDER": "openai",
    "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
}


@pytest.fixture
async def vendor() -> AsyncIterator[StreamingVendor]:
    async with streaming_vendor(words=100, pause=0.03) as serving:
        yield serving


@pytest.fixture
def nexus_env(vendor: StreamingVendor) -> dict[str, str]:
    return FAST | {"PGNEXUS_PROVIDERS__OPENAI__BASE_URL": vendor.base_url}


class Reader:
    """One who reads an answer, and what he has of it."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.texts: list[str] = []
        self.last = 0
        self.discards = 0
        self.request_id: UUID | None = None

    async def read(self, stream: ResultStream, most: int | None = None) -> None:
        """Take chunks to the end, or so many."""
        taken = 0
        async for chunk in stream:
            self.request_id = stream.request_id
            self.last, taken = chunk.number, taken + 1
            if chunk.discard:
                self.texts.clear()
                self.discards += 1
            self.texts.append(chunk.text)
            if taken == most:
                return

    @property
    def text(self) -> str:
        return "".join(self.texts)


def ask(service: LLMService, prompt: str, *, cancel_on_exit: bool = True) -> ResultStream:
    return service.stream("simple", prompt, priority="interactive", cancel_on_exit=cancel_on_exit)


async def midway(readers: list[Reader]) -> None:
    """Wait until everybody has a part of an answer."""

    async def all_have() -> bool:
        return all(len(reader.texts) >= 2 for reader in readers)

    await until(all_have, within=60)


async def check(service: LLMService, readers: list[Reader], vendor: StreamingVendor) -> None:
    """Everybody has the one answer that is stored, which the vendor gave as a whole."""
    for reader in readers:
        assert reader.request_id is not None
        result = await service.wait(reader.request_id, timeout=20)
        assert reader.text == result.text
        calls = vendor.calls[reader.prompt]
        assert result.text in [vendor.text(reader.prompt, call) for call in range(1, calls + 1)]


def started_reading(service: LLMService) -> tuple[list[Reader], list[asyncio.Task[None]]]:
    readers = [Reader(f"question-{number}") for number in range(READERS)]
    return readers, [asyncio.create_task(reader.read(ask(service, reader.prompt))) for reader in readers]


async def test_kill_9_of_the_worker(
    database_url: str, vendor: StreamingVendor, nexus_env: dict[str, str]
) -> None:
    async with running(database_url, nexus=False) as service:
        async with up(database_url, "--only", "nexus", **nexus_env) as first:
            readers, tasks = started_reading(service)
            await midway(readers)
            await first.kill()
        async with up(database_url, "--only", "nexus", **nexus_env):
            await asyncio.gather(*tasks)
            await check(service, readers, vendor)
    assert READERS < sum(vendor.calls.values()) <= 2 * READERS
    # whose answer was asked for again was told that his beginning is void
    assert all(reader.discards >= vendor.calls[reader.prompt] - 1 for reader in readers)


async def test_a_frozen_worker_mixes_nothing_in(
    database_url: str, vendor: StreamingVendor, nexus_env: dict[str, str]
) -> None:
    async with (
        running(database_url, nexus=False) as service,
        up(database_url, "--only", "nexus", **nexus_env) as frozen,
    ):
        readers, tasks = started_reading(service)
        await midway(readers)
        frozen.freeze()
        async with up(database_url, "--only", "nexus", **nexus_env):
            await until(lambda: _asked_again(vendor), within=60)
            frozen.thaw()
            await asyncio.gather(*tasks)
            await check(service, readers, vendor)


async def _asked_again(vendor: StreamingVendor) -> bool:
    return sum(vendor.calls.values()) > READERS


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped fast"])
async def test_the_database_goes_and_comes_back(
    own_server: EmbeddedServer, vendor: StreamingVendor, nexus_env: dict[str, str], how: signal.Signals
) -> None:
    url = own_server.url
    await schema.migrate(url)
    patient = nexus_env | {"PGNEXUS_WORKER_LEASE": "12"}
    async with running(url, nexus=False) as service, up(url, "--only", "nexus", **patient):
        readers, tasks = started_reading(service)
        await midway(readers)
        await restart(own_server, how)
        await asyncio.gather(*tasks)
        await check(service, readers, vendor)
    assert set(vendor.calls.values()) == {1}  # no call was lost for it


async def test_connections_are_cut_again_and_again(
    database_url: str, db: Database, vendor: StreamingVendor, nexus_env: dict[str, str]
) -> None:
    async with (
        running(database_url, nexus=False) as service,
        up(database_url, "--only", "nexus", **nexus_env),
    ):
        readers, tasks = started_reading(service)
        await midway(readers)
        for _ in range(5):
            await sql(
                db,
                """select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()""",
            )
            await asyncio.sleep(0.3)
        await asyncio.gather(*tasks)
        await check(service, readers, vendor)


async def test_readers_come_and_go(
    database_url: str, vendor: StreamingVendor, nexus_env: dict[str, str]
) -> None:
    async def restless(reader: Reader, services: list[LLMService]) -> None:
        await reader.read(ask(services[0], reader.prompt, cancel_on_exit=False), most=random.randint(1, 4))
        ended = False
        while not ended:
            assert reader.request_id is not None
            stream = random.choice(services).resume(reader.request_id, after=reader.last)
            before = reader.last
            await reader.read(stream, most=random.randint(1, 6))
            ended = reader.last == before

    async with (
        running(database_url, nexus=False) as one,
        running(database_url, nexus=False) as other,
        up(database_url, "--only", "nexus", **nexus_env) as first,
    ):
        readers = [Reader(f"question-{number}") for number in range(READERS)]
        tasks = [asyncio.create_task(restless(reader, [one, other])) for reader in readers]
        await midway(readers)
        await first.kill()
        async with up(database_url, "--only", "nexus", **nexus_env):
            await asyncio.gather(*tasks)
            await check(other, readers, vendor)
