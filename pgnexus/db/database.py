"""Under every step of a request: the connections of one process, and the statements it runs on them."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pgnexus.db.connection import Connection, connect, display, sever, unavailable, went_away
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseUnavailable, ServiceMisused, UnsuitableDatabase

MINIMUM_VERSION = 140_000


class Database:
    """A pool of connections to one database, for one process and one event loop.

    A pool of our own, because it has to answer at once: what the server has left is found before it
    is handed out, one broken connection empties the pool, and a refused one is an error now instead
    of a wait in the background.
    """

    def __init__(
        self, url: str, *, connect_timeout: float, pool_size: int, application_name: str, query_timeout: float
    ) -> None:
        self.url = url
        self.query_timeout = query_timeout
        self._connect_timeout = connect_timeout
        self._application_name = application_name
        self._idle: deque[Connection] = deque()
        self._free = asyncio.Semaphore(pool_size)
        self._refused: tuple[float, DatabaseUnavailable] | None = None  # the last connect, and when it failed
        self._explicit_isolation = False
        self._closed = False
        self._home = (os.getpid(), asyncio.get_running_loop())

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        connect_timeout: float = 5.0,
        pool_size: int = 8,
        application_name: str = "pgnexus",
        query_timeout: float = 60.0,
    ) -> Database:
        """Connect once and see that this server can work for us.

        Raises `DatabaseUnavailable` within ``connect_timeout`` seconds, `UnsuitableDatabase` with advice.
        """
        db = cls(
            url,
            connect_timeout=connect_timeout,
            pool_size=pool_size,
            application_name=application_name,
            query_timeout=query_timeout,
        )
        try:
            await db._check_server()
        except BaseException:
            await db.close()
            raise
        return db

    async def query(self, name: str, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Run ``sql/queries/<name>.sql`` as one committed statement; its rows are namedtuples.

        Raises `DatabaseUnavailable` when the connection broke (the statement may have been committed)
        or gave no answer within ``query_timeout``; other faults stay psycopg's errors.
        """
        text = load(name)
        async with self.connection() as connection:
            if self._explicit_isolation:
                async with connection.transaction():
                    cursor = await connection.execute(text, params)
            else:
                cursor = await connection.execute(text, params)
            return await cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def connection(self, *, within: float | None = None) -> AsyncIterator[Connection]:
        """A connection in autocommit; what the block leaves open in it is rolled back.

        Use ``connection.transaction()`` for more than one statement: it begins READ COMMITTED
        whatever the database's default is. A block that takes longer than ``within`` seconds (by default
        ``query_timeout``) has its connection cut, so that nobody waits for ever for a peer that hangs.
        """
        self._check_home()
        loop, within = self._home[1], self.query_timeout if within is None else within
        asked = loop.time()
        async with self._free:
            connection = await self._take(asked)
            guard = loop.call_later(within, sever, connection)
            try:
                yield connection
            except psycopg.Error as error:
                fault = unavailable(error, self.url)
                if fault is None:
                    raise
                if guard.when() <= loop.time():  # it was we who cut it
                    fault = DatabaseUnavailable(f"{display(self.url)}: no answer within {within:g} s")
                await connection.close()
                await self._drop_idle()
                raise fault from error
            finally:
                await self._give_back(connection)
                guard.cancel()

    async def close(self) -> None:
        """Close the idle connections now, and those in use as they come back."""
        self._closed = True
        await self._drop_idle()

    async def _take(self, asked: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not went_away(connection):
                return connection
            await connection.close()
        if self._refused is not None and self._refused[0] > asked:  # while we waited for our turn to try
            raise DatabaseUnavailable(str(self._refused[1]))
        try:
            connection = await connect(
                self.url, timeout=self._connect_timeout, application_name=self._application_name
            )
        except DatabaseUnavailable as error:
            self._refused = (self._home[1].time(), error)
            raise
        self._refused = None
        return connection

    async def _give_back(self, connection: Connection) -> None:
        status = connection.pgconn.transaction_status
        if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            try:
                await connection.rollback()
            except (psycopg.Error, OSError):
                await connection.close()
        elif status != TransactionStatus.IDLE:
            await connection.close()
        if self._closed:
            await connection.close()
        elif not connection.closed:
            self._idle.append(connection)

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    def _check_home(self) -> None:
        if self._closed:
            raise ServiceMisused(f"{display(self.url)}: this Database is closed")
        pid, loop = self._home
        if pid != os.getpid():
            raise ServiceMisused("this Database was opened before a fork; open one in each process")
        if loop is not asyncio.get_running_loop():
            raise ServiceMisused("this Database was opened in another event loop; open one in each")

    async def _check_server(self) -> None:
        try:
            [server] = await self.query("check_server")
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"{display(self.url)}: {error}") from error
        name = display(self.url)
        if server.version < MINIMUM_VERSION:
            raise UnsuitableDatabase(
                f"{name} is PostgreSQL {server.version_text}; use PostgreSQL 14 or later"
            )
        if server.encoding != "UTF8":
            raise UnsuitableDatabase(
                f"{name} has the encoding {server.encoding}; create the database with ENCODING 'UTF8'"
                " (and TEMPLATE template0)"
            )
        if server.standby:
            raise UnsuitableDatabase(f"{name} is a read-only standby; point database_url at the primary")
        if server.read_only:
            raise UnsuitableDatabase(
                f"{name} is read-only (default_transaction_read_only is on); turn it off for this database"
                " and role, or point database_url at the primary"
            )
        self._explicit_isolation = server.isolation != "read committed"
