"""Transactional enqueue: commit and the request is accepted, roll back and it never was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from system import nothing_stored, running, sql

from pgnexus.errors import InvalidRequest, UnsuitableDatabase

Run = Callable[[str], Awaitable[Any]]


@dataclass
class Joinable:
    """One library's connection, and how to speak to it; ``run`` is a plain statement."""

    connection: Any
    run: Run
    commit: Callable[[], Awaitable[Any]]
    rollback: Callable[[], Awaitable[Any]]
    close: Callable[[], Awaitable[Any]]


def later(call: Callable[..., Any], *args: Any) -> Callable[..., Awaitable[Any]]:
    async def run(*more: Any) -> Any:
        return call(*args, *more)

    return run


@asynccontextmanager
async def psycopg_async(url: str) -> AsyncIterator[Joinable]:
    async with await psycopg.AsyncConnection.connect(url) as c:
        yield Joinable(c, c.execute, c.commit, c.rollback, c.close)


@asynccontextmanager
async def psycopg_sync(url: str) -> AsyncIterator[Joinable]:
    with psycopg.connect(url) as c:
        yield Joinable(c, later(c.execute), later(c.commit), later(c.rollback), later(c.close))


@asynccontextmanager
async def psycopg_with_dollars(url: str) -> AsyncIterator[Joinable]:
    async with await psycopg.AsyncConnection.connect(url, cursor_factory=psycopg.AsyncRawCursor) as c:
        yield Joinable(c, c.execute, c.commit, c.rollback, c.close)


def asyncpg_arguments(url: str) -> dict[str, Any]:
    parts = conninfo_to_dict(url)
    return {
        "host": parts["host"],
        "port": int(parts["port"]),
        "user": parts["user"],
        "database": parts["dbname"],
    }


@asynccontextmanager
async def of_asyncpg(url: str) -> AsyncIterator[Joinable]:
    c = await asyncpg.connect(**asyncpg_arguments(url))
    transaction = c.transaction()
    await transaction.start()
    try:
        yield Joinable(c, c.execute, transaction.commit, transaction.rollback, c.close)
    finally:
        await c.close()


@asynccontextmanager
async def of_asyncpg_pool(url: str) -> AsyncIterator[Joinable]:
    pool = await asyncpg.create_pool(**asyncpg_arguments(url), min_size=1, max_size=1)
    c = await pool.acquire()
    transaction = c.transaction()
    await transaction.start()
    try:
        yield Joinable(c, c.execute, transaction.commit, transaction.rollback, lambda: pool.release(c))
    finally:
        pool.terminate()


def engine_url(url: str, driver: str) -> sqlalchemy.URL:
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return sqlalchemy.URL.create(f"postgresql+{driver}", "postgres", database=parts.path[1:], query=query)


@contextmanager
def engine_of(url: str, **options: Any):
    engine = sqlalchemy.create_engine(engine_url(url, "psycopg"), **options)
    yield engine
    engine.dispose()


def spoken(execute: Callable[[Any], Any]) -> Callable[[str], Any]:
    return lambda text: execute(sqlalchemy.text(text))


@asynccontextmanager
async def sqlalchemy_sync(url: str) -> AsyncIterator[Joinable]:
    with engine_of(url) as engine, engine.connect() as c:
        yield Joinable(c, later(spoken(c.execute)), later(c.commit), later(c.rollback), later(c.close))


@asynccontextmanager
async def sqlalchemy_session(url: str) -> AsyncIterator[Joinable]:
    with engine_of(url) as engine, Session(engine) as c:
        yield Joinable(c, later(spoken(c.execute)), later(c.commit), later(c.rollback), later(c.close))


@asynccontextmanager
async def sqlalchemy_async(url: str, driver: str = "psycopg") -> AsyncIterator[Joinable]:
    engine = create_async_engine(engine_url(url, driver))
    async with engine.connect() as c:
        yield Joinable(c, spoken(c.execute), c.commit, c.rollback, c.close)
    await engine.dispose()


def sqlalchemy_asyncpg(url: str):
    return sqlalchemy_async(url, "asyncpg")


@asynccontextmanager
async def sqlalchemy_async_session(url: str) -> AsyncIterator[Joinable]:
    engine = create_async_engine(engine_url(url, "asyncpg"))
    async with AsyncSession(engine) as c:
        yield Joinable(c, spoken(c.execute), c.commit, c.rollback, c.close)
    await engine.dispose()


LIBRARIES = [
    psycopg_async,
    psycopg_sync,
    psycopg_with_dollars,
    of_asyncpg,
    of_asyncpg_pool,
    sqlalchemy_sync,
    sqlalchemy_session,
    sqlalchemy_async,
    sqlalchemy_asyncpg,
    sqlalchemy_async_session,
]


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.__name__)
def library(request):
    return request.param


@pytest.fixture
async def service(database_url):
    async with running(database_url, nexus=False) as service:
        yield service


async def mine(db) -> list[int]:
    return [row.n for row in await sql(db, "select n from mine order by n")]


@pytest.fixture
async def table(db) -> None:
    await sql(db, "create table mine (n int)")


async def test_commit_and_it_is_accepted(library, service, database_url, db, table):
    async with library(database_url) as joinable:
        await joinable.run("insert into mine values (1)")
        handle = await service.enqueue(
            "simple", "Hello", connection=joinable.connection, tools=[{"b": 1, "a": 2}]
        )
        assert handle.created
        assert await nothing_stored(db)
        await joinable.commit()
        assert await handle.status() == "enqueued"
    assert await mine(db) == [1]


async def test_roll_back_and_it_never_was(library, service, database_url, db, table):
    async with library(database_url) as joinable:
        await joinable.run("insert into mine values (1)")
        await service.enqueue("simple", "Hello", connection=joinable.connection)
        await joinable.rollback()
    assert await nothing_stored(db)
    assert await mine(db) == []


async def test_what_is_refused_does_not_spoil_the_transaction(library, service, database_url, db, table):
    taken = await service.enqueue("simple", "Hello", idempotency_key="k")
    async with library(database_url) as joinable:
        await joinable.run("insert into mine values (1)")
        for refused in (
            {"reply_to": "no_such_queue"},
            {"idempotency_key": "k"},
            {"request_id": taken.request_id},
        ):
            with pytest.raises(InvalidRequest, match=r"no_such_queue|used before") as raised:
                await service.enqueue("simple", "Another", connection=joinable.connection, **refused)
            assert "\n" not in str(raised.value)
        await joinable.run("insert into mine values (2)")
        await joinable.commit()
    assert await mine(db) == [1, 2]
    assert len(await service.search()) == 1


async def test_a_failed_transaction_is_named(library, service, database_url, db):
    async with library(database_url) as joinable:
        with pytest.raises(Exception, match="no_such_table"):
            await joinable.run("select * from no_such_table")
        with pytest.raises(InvalidRequest, match="transaction has failed"):
            await service.enqueue("simple", "Hello", connection=joinable.connection)
        await joinable.rollback()
    assert await nothing_stored(db)


async def test_another_database_is_named_and_its_transaction_goes_on(
    library, service, empty_database_url, another_url, db
):
    for url, words in ((empty_database_url, "has no pgnexus"), (another_url, "its own database")):
        async with library(url) as joinable:
            await joinable.run("create table mine (n int)")
            with pytest.raises(UnsuitableDatabase, match=words):
                await service.enqueue("simple", "Hello", connection=joinable.connection)
            await joinable.run("insert into mine values (1)")
            await joinable.commit()
    assert await nothing_stored(db)


async def test_a_closed_connection_is_named(library, service, database_url, db):
    if library in (sqlalchemy_session, sqlalchemy_async_session):
        pytest.skip("a session is never closed for good")
    async with library(database_url) as joinable:
        if library is of_asyncpg_pool:
            await joinable.rollback()
        await joinable.close()
        with pytest.raises(InvalidRequest, match="closed"):
            await service.enqueue("simple", "Hello", connection=joinable.connection)
    assert await nothing_stored(db)


async def test_autocommit_is_named(service, database_url, db):
    async def refused(connection):
        with pytest.raises(InvalidRequest, match="autocommit"):
            await service.enqueue("simple", "Hello", connection=connection)
        assert await nothing_stored(db)

    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await refused(connection)
        async with connection.transaction():
            assert await service.enqueue("simple", "Hello", connection=connection)
            await connection.execute("delete from pgnexus.job_results")
            await connection.execute("delete from pgmq.q_ai_requests")
    with psycopg.connect(database_url, autocommit=True) as connection:
        await refused(connection)
    connection = await asyncpg.connect(**asyncpg_arguments(database_url))
    await refused(connection)
    await connection.close()
    with engine_of(database_url, isolation_level="AUTOCOMMIT") as engine, engine.connect() as connection:
        await refused(connection)
    with engine_of(database_url) as engine, engine.connect() as connection:
        await refused(connection.execution_options(isolation_level="AUTOCOMMIT"))


async def test_many_join_as_a_whole(service, database_url, db):
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        handles = await service.enqueue_many(
            [{"messages": f"{i}"} for i in range(1500)], connection=connection
        )
        assert len(handles) == 1500
        assert await nothing_stored(db)
        with pytest.raises(InvalidRequest, match="no_such_queue"):
            await service.enqueue_many(
                [
                    *({"messages": f"{i}"} for i in range(1200)),
                    {"messages": "x", "reply_to": "no_such_queue"},
                ],
                connection=connection,
            )
        await connection.commit()
    assert len(await service.search(limit=5000)) == 1500


async def test_a_user_without_the_role_is_told_so(service, database_url, db):
    await sql(
        db,
        "create role nobody_here"
        if not await sql(db, "select 1 from pg_roles where rolname = 'nobody_here'")
        else "select",
    )
    async with await psycopg.AsyncConnection.connect(
        f"{database_url}&options=-crole%3Dnobody_here"
    ) as connection:
        with pytest.raises(UnsuitableDatabase, match="grant pgnexus_caller"):
            await service.enqueue("simple", "Hello", connection=connection)
        assert (await (await connection.execute("select 1")).fetchone()) == (1,)


@pytest.mark.parametrize("thing", ["a text", 5, object()])
async def test_what_is_no_connection_is_named(service, db, thing):
    with pytest.raises(InvalidRequest, match=type(thing).__name__):
        await service.enqueue("simple", "Hello", connection=thing)
    assert await nothing_stored(db)


async def test_a_call_cannot_wait_inside_a_transaction(service, database_url, db):
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        with pytest.raises(InvalidRequest, match="enqueue"):
            await service.call("simple", "Hello", connection=connection)
    assert await nothing_stored(db)


async def test_a_subclass_of_a_connection_is_one(service, database_url):
    class Own(psycopg.AsyncConnection):
        pass

    async with await Own.connect(database_url) as connection:
        handle = await service.enqueue("simple", "Hello", connection=connection)
    assert await handle.status() == "enqueued"


@pytest.fixture
def another_url(server):
    name = server.create(template="template_pgnexus")
    yield server.url(name)
    server.drop(name)
