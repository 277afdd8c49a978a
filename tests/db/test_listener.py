"""Listener: hears, notices when it no longer does, and comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener


class Ear:
    """A listener on the channel `work`, with what it heard in a queue."""

    def __init__(self, url: str, **options: object) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.listener = Listener(url, **options)  # type: ignore[arg-type]
        self.listener.subscribe("work", self.heard.put_nowait)

    async def __aenter__(self) -> Ear:
        await self.listener.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.stop()


class Proxy:
    """A way to the server's Unix socket that can hang: it takes bytes and passes none on."""

    def __init__(self, url: str) -> None:
        self._target = conninfo_to_dict(url)
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.accepted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{port}/{self._target['dbname']}?sslmode=disable&gssencmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for writer in self._writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        path = f"{self._target['host']}/.s.PGSQL.{self._target['port']}"
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(path)
        self._writers += [writer, upstream_writer]
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self.flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(database_url) as found:
        yield found


@pytest.fixture
async def warned() -> AsyncIterator[asyncio.Event]:
    """Set when the listener warns."""
    event = asyncio.Event()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: event.set()  # type: ignore[method-assign]
    logger = logging.getLogger("pgnexus.db.listener")
    logger.addHandler(handler)
    yield event
    logger.removeHandler(handler)


async def say(db: Database, payload: str) -> None:
    await db.query("notify", {"channel": "work", "payload": payload})


async def test_it_hears_after_it_has_said_that_it_listens(db: Database, database_url: str) -> None:
    async with Ear(database_url) as ear:
        assert ear.listener.healthy
        assert await ear.heard.get() == ""
        for payload in ("one", "zwei ä", "three"):
            await say(db, payload)
            assert await ear.heard.get() == payload
    assert not ear.listener.healthy


async def test_a_callback_that_fails_disturbs_no_other(
    db: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear(database_url)

    def fail(payload: str) -> None:
        raise KeyError(payload)

    ear.listener.subscribe("bad", fail)
    async with ear:
        await db.query("notify", {"channel": "bad", "payload": "x"})
        await say(db, "still here")
        assert [await ear.heard.get(), await ear.heard.get()] == ["", "still here"]
    assert "bad failed" in caplog.text


async def test_what_arrives_during_a_keepalive_is_not_lost(db: Database, database_url: str) -> None:
    async with Ear(database_url, keepalive=0.001) as ear:
        assert await ear.heard.get() == ""
        for n in range(200):
            await say(db, str(n))
        assert [await ear.heard.get() for _ in range(200)] == [str(n) for n in range(200)]


async def test_a_terminated_connection_is_made_anew(
    db: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pgnexus")
    async with Ear(database_url) as ear:
        assert await ear.heard.get() == ""
        async with db.connection() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'pgnexus listener' AND datname = current_database()"
            )
        assert await ear.heard.get() == ""  # look, you may have missed something
        await say(db, "again")
        assert await ear.heard.get() == "again"
    told = [r.getMessage() for r in caplog.records if r.name == "pgnexus.db.listener"]
    assert len(told) == 2
    assert "cannot listen" in told[0]
    assert "listening again" in told[1]


async def test_a_half_open_connection_is_noticed_and_made_anew(
    db: Database, proxy: Proxy, warned: asyncio.Event
) -> None:
    async with Ear(proxy.url, keepalive=0.05, connect_timeout=0.2) as ear:
        assert await ear.heard.get() == ""
        before = proxy.accepted
        proxy.flowing.clear()
        await warned.wait()
        assert not ear.listener.healthy
        proxy.flowing.set()
        assert await ear.heard.get() == ""
        assert proxy.accepted > before
        await say(db, "again")
        while (payload := await ear.heard.get()) == "":
            pass
        assert payload == "again"


async def test_a_notify_that_never_arrives_is_noticed(
    server, database_url: str, empty_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As behind a pooler in transaction mode: LISTEN is taken, and what others send does not come."""
    ear = Ear(database_url, probe_url=empty_database_url, connect_timeout=0.2)
    async with ear:
        assert not ear.listener.healthy
        assert ear.heard.empty()
    [record] = [r for r in caplog.records if r.name == "pgnexus.db.listener"]
    assert "listen_url" in record.getMessage()


async def test_start_returns_when_nobody_is_there(caplog: pytest.LogCaptureFixture) -> None:
    async with Ear("postgresql://me:secret@127.0.0.1:1/none") as ear:
        assert not ear.listener.healthy
    assert "me:***@127.0.0.1:1/none" in caplog.text


async def test_subscriptions_come_before_the_start(database_url: str) -> None:
    async with Ear(database_url) as ear:
        with pytest.raises(RuntimeError, match="before start"):
            ear.listener.subscribe("late", print)


async def test_stop_closes_the_connection(db: Database, database_url: str) -> None:
    async with Ear(database_url):
        pass
    gone = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgnexus listener' AND datname = %s"
    )
    name = conninfo_to_dict(database_url)["dbname"]
    async with db.connection() as connection:
        while (await (await connection.execute(gone, [name])).fetchone())[0]:
            pass
