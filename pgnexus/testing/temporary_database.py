"""Before a test: a database of its own, with the schema, and gone afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from platformdirs import user_cache_path
from psycopg import sql

from pgnexus.db import schema
from pgnexus.db.binaries import SYSTEM_DIR
from pgnexus.db.connection import connect
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.db.queries import load

SERVER_VARIABLE = "PGNEXUS_TEST_DATABASE_URL"
_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


@asynccontextmanager
async def temporary_database(
    server_url: str | None = None, *, data_dir: Path | str | None = None
) -> AsyncIterator[str]:
    """The URL of a new database with the schema, which is dropped at the end, whoever is still connected.

    It is made on the server of ``server_url``, of the variable PGNEXUS_TEST_DATABASE_URL, or on an embedded one: in
    ``data_dir`` while the database is there, else in a directory kept for tests until this process ends. In a
    conftest.py:

        @pytest.fixture
        async def database_url():
            async with temporary_database() as url:
                yield url
    """
    async with AsyncExitStack() as stack:
        server = server_url or os.environ.get(SERVER_VARIABLE)
        if not server:
            embedded = _kept_server() if data_dir is None else EmbeddedServer(data_dir, settings=_SETTINGS)
            server = await asyncio.to_thread(embedded.start)
            if data_dir is not None:
                stack.push_async_callback(asyncio.to_thread, embedded.stop)
        name = f"pgnexus_test_{uuid4().hex[:16]}"
        await _say(server, "create_temporary_database", name)
        try:
            url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
            await schema.migrate(url)
            yield url
        finally:
            await _say(server, "drop_temporary_database", name)


async def _say(server: str, statement: str, name: str) -> None:
    connection = await connect(server, timeout=10.0, application_name="pgnexus testing")
    try:
        await connection.execute(sql.SQL(load(statement)).format(name=sql.Identifier(name)))
    finally:
        await connection.close()


@cache
def _kept_server() -> EmbeddedServer:
    """One for all tests of this process, which leaves it when it ends; starting it anew costs each test more."""
    return EmbeddedServer(_data_dir(), settings=_SETTINGS)


def _data_dir() -> Path:
    """Apart from that of the user's own data; as root where the server's user may enter."""
    return SYSTEM_DIR / "testing" if os.geteuid() == 0 else user_cache_path("pgnexus") / "testing"
