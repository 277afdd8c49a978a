"""Database: what it refuses, and how it comes back after the server went."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from pgnexus.db import connection as connections
from pgnexus.db.database import Database
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseUnavailable, InvalidSettings, ServiceMisused, UnsuitableDatabase


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


async def terminate_itself(db: Database) -> None:
    async with db.connection() as connection:
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which somebody listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_nobody_there_is_an_error_that_hides_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DatabaseUnavailable) as caught:
        await Database.open(f"postgresql://me:secret@127.0.0.1:{port}/app")
    assert f"postgresql://me:***@127.0.0.1:{port}/app" in str(caught.value)
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_server_that_says_nothing_is_given_up_in_time(silent_port: int) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.2 s"):
        await Database.open(f"postgresql://me:secret@127.0.0.1:{silent_port}/app", connect_timeout=0.2)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:secret@host/db", "nonsense secret", "postgresql://me:secret@host/db?x=1"]
)
async def test_a_url_that_is_none_is_named_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSettings, match="not a PostgreSQL URL") as caught:
        await Database.open(url)
    assert "secret" not in str(caught.value)


async def test_a_key_value_string_is_shown_without_its_password() -> None:
    assert connections.display("host=h password=secret dbname=d") == "dbname=d host=h"


async def test_a_database_that_does_not_exist_is_named(empty_database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        await Database.open(empty_database_url.replace("test_", "missing_"))


async def test_another_encoding_is_refused(server) -> None:
    server.execute("CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", "latin")
    try:
        with pytest.raises(UnsuitableDatabase, match=r"LATIN1.*ENCODING 'UTF8'"):
            await Database.open(server.url("latin"))
    finally:
        server.drop("latin")


async def test_a_read_only_database_is_refused(server, empty_database_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
    server.execute("ALTER DATABASE {} SET default_transaction_read_only = on", name)
    with pytest.raises(UnsuitableDatabase, match="read-only"):
        await Database.open(empty_database_url)


async def test_a_database_that_defaults_to_serializable_works(server, database_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    server.execute("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", name)
    db = await Database.open(database_url)
    [row] = await db.query("check_server")
    assert row.isolation == "serializable"
    await asyncio.gather(*(db.query("notify", {"channel": "c", "payload": "p"}) for _ in range(20)))
    async with db.connection() as connection, connection.transaction():
        cursor = await connection.execute("SHOW transaction_isolation")
        assert await cursor.fetchall() == [("read committed",)]
    await db.close()


async def test_the_url_may_name_the_application(database_url: str) -> None:
    for url, expected in ((database_url, "mine"), (database_url + "&application_name=theirs", "theirs")):
        db = await Database.open(url, application_name="mine")
        async with db.connection() as connection:
            assert connection.info.get_parameters()["application_name"] == expected
        await db.close()


async def test_json_comes_as_values(db: Database) -> None:
    async with db.connection() as connection:
        cursor = await connection.execute("""SELECT '{"a": [1, 2.5, null, "ä"]}'::jsonb AS found""")
        [row] = await cursor.fetchall()
    assert row.found == {"a": [1, 2.5, None, "ä"]}


async def test_a_fault_of_the_statement_stays_psycopgs_and_costs_no_connection(db: Database) -> None:
    pids = []

    async def divide() -> None:
        async with db.connection() as connection:
            pids.append(connection.info.backend_pid)
            await connection.execute("SELECT 1/0")

    for _ in range(2):
        with pytest.raises(errors.DivisionByZero):
            await divide()
    assert pids[0] == pids[1]


async def test_what_a_block_leaves_open_is_rolled_back(db: Database) -> None:
    async with db.connection() as connection:
        await connection.execute("BEGIN")
        await connection.execute("CREATE TABLE left_open ()")
    async with db.connection() as connection:
        cursor = await connection.execute("SELECT to_regclass('left_open')")
        assert await cursor.fetchall() == [(None,)]


async def test_no_more_connections_than_allowed(database_url: str) -> None:
    db = await Database.open(database_url, pool_size=3)
    async with db.connection() as first, db.connection() as second, db.connection() as third:
        pids = {c.info.backend_pid for c in (first, second, third)}
        more = asyncio.create_task(db.query("check_server"))
        await asyncio.sleep(0)
        assert not more.done()
        assert len(pids) == 3
    await more
    await db.close()


async def test_a_cancelled_query_leaves_the_pool_usable(database_url: str) -> None:
    db = await Database.open(database_url, pool_size=1)

    async def sleep() -> None:
        async with db.connection() as connection:
            await connection.execute("SELECT pg_sleep(100)")

    task = asyncio.create_task(sleep())
    watcher = await connections.connect(database_url, timeout=5)
    sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    while not await (await watcher.execute(sleeping)).fetchall():
        pass
    await watcher.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await db.query("check_server")
    await db.close()


async def test_terminated_connections_are_replaced(database_url: str) -> None:
    db = await Database.open(database_url, pool_size=4)
    await asyncio.gather(*(db.query("check_server") for _ in range(4)))
    with pytest.raises(DatabaseUnavailable, match="terminating connection"):
        await terminate_itself(db)
    execute(
        database_url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert await db.query("check_server")  # those left idle are not handed out
    await db.close()


_FAREWELL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


@asynccontextmanager
async def saying_farewell(url: str) -> AsyncIterator[str]:
    """The URL of a server that is told to leave just when it has committed: both are read as one answer."""
    given = conninfo_to_dict(url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(f"{given['host']}/.s.PGSQL.{given['port']}")

        async def answers() -> None:
            while data := await there.read(65536):
                committed = data.find(b"COMMIT\0")
                if committed >= 0:
                    farewell = b"E" + (len(_FAREWELL) + 4).to_bytes(4, "big") + _FAREWELL
                    writer.write(data[: committed + 7] + farewell)
                    break
                writer.write(data)
            writer.close()

        answering = asyncio.create_task(answers())
        while data := await reader.read(65536):
            back.write(data)
        back.close()
        await answering

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield f"postgresql://postgres@127.0.0.1:{port}/{given['dbname']}"


async def test_a_farewell_behind_the_result_of_a_commit_is_a_lost_connection(database_url: str) -> None:
    execute(database_url, "CREATE TABLE kept (n int)")
    async with saying_farewell(database_url) as url:
        db = await Database.open(url)
        with pytest.raises(DatabaseUnavailable) as caught:
            async with db.connection() as connection, connection.transaction():
                await connection.execute("INSERT INTO kept VALUES (1)")
        await db.close()
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert not connections.is_data_fault(caught.value.__cause__)  # nothing that was sent is to blame
    with psycopg.connect(database_url) as sure:
        assert sure.execute("SELECT n FROM kept").fetchall() == [
            (1,)
        ]  # as with any commit that nobody heard of


async def test_a_query_without_an_answer_is_cut(database_url: str) -> None:
    db = await Database.open(database_url, query_timeout=0.2)
    locker = await connections.connect(database_url, timeout=5)
    async with locker.transaction():
        await locker.execute("LOCK TABLE pgmq.meta IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.2 s"):
            await db.query("pgmq_create", {"queue": "waiting"})
        with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.1 s"):
            async with db.connection(within=0.1) as connection, connection.transaction():
                await connection.execute("SELECT 1 FROM pgmq.meta")
    await locker.close()
    assert await db.query("check_server")
    await db.close()


async def test_who_waits_for_a_connection_hears_of_the_one_that_failed() -> None:
    """Else each would wait for as long as a connection takes to fail, one after another."""
    tried = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    url = f"postgresql://me@127.0.0.1:{server.sockets[0].getsockname()[1]}/app?sslmode=disable"
    db = Database(url, connect_timeout=5, pool_size=2, application_name="test", query_timeout=5)
    asked = await asyncio.gather(*(db.query("check_server") for _ in range(100)), return_exceptions=True)
    assert {type(error) for error in asked} == {DatabaseUnavailable}
    assert tried == 2
    with pytest.raises(DatabaseUnavailable):
        await db.query("check_server")
    assert tried == 3  # who comes later tries anew
    server.close()
    await db.close()


async def test_use_after_close_or_from_another_loop_says_so(database_url: str) -> None:
    db = await Database.open(database_url)
    with pytest.raises(ServiceMisused, match="event loop"):
        await asyncio.to_thread(lambda: asyncio.run(db.query("check_server")))
    await db.close()
    with pytest.raises(ServiceMisused, match="closed"):
        await db.query("check_server")


async def test_use_after_a_fork_says_so(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: other)
    with pytest.raises(ServiceMisused, match="fork"):
        await db.query("check_server")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("08006", True),
        ("53100", True),  # disk full: passes, and the message says so
        ("53300", True),
        ("57P01", True),
        ("57P02", True),
        ("57P03", True),
        ("25006", True),
        ("57014", False),
        ("40001", False),
        ("22P02", False),
        ("23505", False),
        ("54000", False),
    ],
)
def test_which_faults_mean_that_the_server_is_not_there(state: str, expected: bool) -> None:
    error = errors.lookup(state)("the server's words")
    found = connections.unavailable(error, "postgresql://me:secret@h/d")
    assert (found is not None) is expected
    assert found is None or str(found) == "postgresql://me:***@h/d: the server's words"


def test_a_query_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(FileNotFoundError):
        load("no_such_verb")
