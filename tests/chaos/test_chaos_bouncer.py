"""PgBouncer as the chaos has it: before a server that goes and comes back, and killed itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from chaos.bouncer import PROGRAM, Bouncer
from chaos.server import PostgresServer

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server on TCP; not in pytest's directories, which are closed to the user it runs as."""
    with tempfile.TemporaryDirectory(prefix="pgnexus-test-") as folder:
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder) / "postgres", settings={"fsync": "off"})
        server.initialise()
        server.start()
        yield server
        server.stop("immediate")


@pytest.fixture
def bouncer(postgres: PostgresServer) -> Iterator[Bouncer]:
    bouncer = Bouncer(postgres.path.parent / "bouncer", postgres.port, users=("postgres", "app"), pool_size=1)
    bouncer.start()
    yield bouncer
    bouncer.stop()


def test_clients_share_a_connection_transaction_by_transaction(bouncer: Bouncer) -> None:
    url = bouncer.url("postgres", "postgres")
    with psycopg.connect(url, autocommit=True) as one, psycopg.connect(url, autocommit=True) as two:
        assert pid_of(one) == pid_of(two)


def test_as_a_role(bouncer: Bouncer, postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("create user app")
    with psycopg.connect(bouncer.url("app", "postgres")) as connection:
        assert connection.execute("select current_user").fetchone() == ("app",)


def test_killed_and_started_again(bouncer: Bouncer) -> None:
    url = bouncer.url("postgres", "postgres")
    with psycopg.connect(url) as connection:
        bouncer.kill9()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    bouncer.start()
    psycopg.connect(url).close()


def test_what_is_wrong_is_told(postgres: PostgresServer) -> None:
    bouncer = Bouncer(postgres.path.parent / "wrong", postgres.port, host="nowhere.invalid")
    with pytest.raises(RuntimeError, match=r"(?s)does not start: .*nowhere\.invalid"):
        bouncer.start()


def pid_of(connection: psycopg.Connection) -> object:
    return connection.execute("select pg_backend_pid()").fetchall()[0][0]
