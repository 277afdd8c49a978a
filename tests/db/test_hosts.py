"""A URL that names several servers, of which one can be used."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgnexus.db.connection import display
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of somebody who takes connections and never says a word: as a machine that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port where nobody is any more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def both(first: int, database_url: str) -> str:
    """A URL that names the port first, and then the server of the tests."""
    found = conninfo_to_dict(database_url)
    hosts, ports = f"127.0.0.1,{found['host']}", f"{first},{found['port']}"
    return (
        f"postgresql://{found['user']}:secret@/{found['dbname']}?host={hosts}&port={ports}"
        "&target_session_attrs=read-write"
    )


async def test_the_first_has_gone(closed: int, database_url: str) -> None:
    db = await Database.open(both(closed, database_url))
    assert await db.query("home")
    await db.close()


async def test_the_first_hangs(silent: int, database_url: str) -> None:
    db = await Database.open(both(silent, database_url), connect_timeout=1)
    assert await db.query("home")
    await db.close()


async def test_the_listener_finds_the_other_one(closed: int, database_url: str) -> None:
    heard = asyncio.Event()
    listener = Listener(both(closed, database_url))
    listener.subscribe("somebody", lambda _: heard.set())
    await listener.start()
    assert listener.healthy
    await asyncio.wait_for(heard.wait(), 10)
    await listener.stop()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@db1:5432,db2:5433/app?target_session_attrs=read-write",
        "host=db1,db2 port=5432,5433 user=me password=secret dbname=app target_session_attrs=read-write",
    ],
)
def test_all_are_shown_and_the_password_is_not(url: str) -> None:
    shown = display(url)
    assert "secret" not in shown
    assert "db1" in shown
    assert "db2" in shown
