"""A PostgreSQL server for the whole run, and a fresh database, schema included, for each test.

``PGNEXUS_TEST_PG_BIN=/usr/lib/postgresql/15/bin`` runs the same tests on other programs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer

SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
    "max_prepared_transactions": "10",
}
TEMPLATE = "template_pgnexus"


@dataclass
class Server:
    """A running server, and the databases of one test run on it."""

    embedded: EmbeddedServer

    def url(self, database: str, **options: str) -> str:
        base = self.embedded.url.replace("@/pgnexus?", f"@/{database}?")
        return base + "".join(f"&{key}={value}" for key, value in options.items())

    def execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def create(self, *, template: str = "template0") -> str:
        name = f"test_{uuid.uuid4().hex[:16]}"
        self.execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        return name

    def drop(self, name: str) -> None:
        self.execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


@pytest.fixture(scope="session")
def pg_bin() -> Path | None:
    given = os.environ.get("PGNEXUS_TEST_PG_BIN")
    return Path(given) if given else None


@pytest.fixture
def server_dir() -> Iterator[Path]:
    """A directory for a server of the test's own; pytest's are closed to the user root's server runs as."""
    path = Path(tempfile.mkdtemp(prefix="pgnexus-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def server(pg_bin: Path | None) -> Iterator[Server]:
    """One server for all workers of this run; the last one to leave takes it away."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    path = Path(tempfile.gettempdir()) / f"pgnexus-tests-{run[:16]}"
    embedded = EmbeddedServer(path, pg_bin, settings=SETTINGS)
    embedded.start()
    found = Server(embedded)
    _make_template(found)
    yield found
    if embedded.stop():
        shutil.rmtree(path, ignore_errors=True)


def _make_template(server: Server) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(1)")
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [TEMPLATE]).fetchone():
            return
        draft = server.create()
        asyncio.run(schema.migrate(server.url(draft)))
        if (schema.SQL_DIR / "roles.sql").exists():
            asyncio.run(schema.create_roles(server.url(draft)))
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        connection.execute(rename.format(sql.Identifier(draft), sql.Identifier(TEMPLATE)))


@pytest.fixture
def database_url(server: Server) -> Iterator[str]:
    """The URL of a fresh database with the schema, as superuser."""
    name = server.create(template=TEMPLATE)
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def empty_database_url(server: Server) -> Iterator[str]:
    """The URL of a fresh database with nothing in it."""
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def caller_url(database_url: str) -> str:
    """The same database as `database_url`, as the caller's role."""
    return f"{database_url}&options=-crole%3Dpgnexus_caller"


@pytest.fixture
def nexus_url(database_url: str) -> str:
    """The same database as `database_url`, as the nexus role."""
    return f"{database_url}&options=-crole%3Dpgnexus_nexus"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """An open `Database` on `database_url`."""
    database = await Database.open(database_url)
    yield database
    await database.close()


def database_name(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])
