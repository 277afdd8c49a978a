"""Behind PgBouncer in transaction mode: everything works but LISTEN, and that is noticed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgnexus.db import schema
from pgnexus.db.binaries import Owner
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.pgmq import PgmqClient
from tests.system import running

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")

CONFIG = """
[databases]
* = host={host} port={port} user=postgres pool_size=2
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
"""


@pytest.fixture
def pooler(server, server_dir: Path) -> Iterator[str]:
    """The URL of a PgBouncer before the server, for `.format(database)`."""
    target = conninfo_to_dict(server.embedded.url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = server_dir / "pgbouncer.ini"
    config.write_text(CONFIG.format(host=target["host"], port=target["port"], listen_port=port))
    owner = Owner.current()
    process = subprocess.Popen(
        [str(PGBOUNCER), str(config)],
        stderr=subprocess.PIPE,
        text=True,
        user=owner.uid if owner.foreign else None,
        group=owner.gid if owner.foreign else None,
        extra_groups=[] if owner.foreign else None,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "process up" in line:
            break
    yield f"postgresql://postgres@127.0.0.1:{port}/{{}}?sslmode=disable"
    process.terminate()
    process.stderr.close()
    process.wait()


async def test_statements_transactions_and_queues_work(pooler: str, empty_database_url: str) -> None:
    url = pooler.format(conninfo_to_dict(empty_database_url)["dbname"])
    applied = await asyncio.gather(schema.migrate(url), schema.migrate(url))
    assert sorted(map(bool, applied)) == [False, True]
    db = await Database.open(url)
    await schema.verify(db)
    client = PgmqClient(db)
    await client.ensure_queue("work")
    await asyncio.gather(*(client.send_message("work", {"n": n}) for n in range(50)))
    read = await asyncio.gather(*(client.read_messages("work", 10) for _ in range(5)))
    assert sorted(message.message["n"] for batch in read for message in batch) == list(range(50))
    await db.close()


async def test_serializable_by_default_is_overruled_in_each_transaction(
    pooler: str, server, database_url: str
) -> None:
    name = conninfo_to_dict(database_url)["dbname"]
    server.execute("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", name)
    db = await Database.open(pooler.format(name))
    client = PgmqClient(db)
    await client.ensure_queue("work")
    await client.send_messages("work", [{"n": n} for n in range(40)])
    read = await asyncio.gather(*(client.read_messages("work", 5) for _ in range(8)))
    assert sorted(message.message["n"] for batch in read for message in batch) == list(range(40))
    await db.close()


async def test_a_listener_notices_that_nothing_arrives(
    pooler: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(pooler.format(conninfo_to_dict(database_url)["dbname"]), connect_timeout=1)
    listener.subscribe("work", print)
    await listener.start()
    assert not listener.healthy
    assert "listen_url" in caplog.text
    await listener.stop()


async def test_what_listens_in_vain_leaves_nothing_that_listens(pooler: str, database_url: str) -> None:
    """A LISTEN that stayed in the pooler's connections would fill the memory of whoever gets them next."""
    url = pooler.format(conninfo_to_dict(database_url)["dbname"])
    listener = Listener(url, connect_timeout=1)
    listener.subscribe("work", print)
    await listener.start()
    await listener.stop()
    db = await Database.open(url)
    async with AsyncExitStack() as stack:
        for _ in range(2):  # all of the pool's connections
            connection = await stack.enter_async_context(db.connection())
            await stack.enter_async_context(connection.transaction())
            rows = await (await connection.execute("select pg_listening_channels()")).fetchall()
            assert not rows
    await db.close()


async def test_a_joined_enqueue_needs_no_connection_beside_the_caller_s(
    pooler: str, database_url: str
) -> None:
    url = pooler.format(conninfo_to_dict(database_url)["dbname"])
    async with running(url, nexus=False, listen_url=database_url) as service, AsyncExitStack() as stack:
        joined = []
        for _ in range(2):  # all that the pooler has
            connection = await psycopg.AsyncConnection.connect(url, prepare_threshold=None)
            joined.append(await stack.enter_async_context(connection))
            await connection.execute("select 1")
        async with asyncio.timeout(30):
            for connection in joined:
                await service.enqueue("simple", "Hello", connection=connection)
            for connection in joined:
                await connection.commit()
        assert len(await service.search()) == 2
