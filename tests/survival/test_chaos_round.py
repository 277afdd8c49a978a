"""One short round of `python -m chaos`: everything on, and everything going wrong at once, judged by ledger.

``PGNEXUS_CHAOS_SEED`` says which; many and longer ones are `make chaos`.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import report
from chaos.round import play
from chaos.server import PostgresServer

pytestmark = pytest.mark.timeout(600)

SECONDS = 8.0


@pytest.fixture
def tcp_server(server_dir: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(server_dir / "postgres")
    server.initialise()
    server.start()
    yield server
    server.stop()


async def test_everything_at_once(tcp_server: PostgresServer, server_dir: Path) -> None:
    seed = int(os.environ.get("PGNEXUS_CHAOS_SEED") or random.randrange(10**6))
    verdict = await play(seed, SECONDS, server_dir / "round", tcp_server)
    assert verdict.green, report.of_round(verdict)
    assert verdict.accepted > 0
    assert verdict.faults


async def test_the_pid_is_that_of_a_running_server(tcp_server: PostgresServer) -> None:
    assert tcp_server.pid is not None
    tcp_server.kill9()
    await asyncio.to_thread(tcp_server.start)
    assert tcp_server.pid is not None
