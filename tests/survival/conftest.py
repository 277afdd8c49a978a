"""Servers for one test alone, to be killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pgnexus.db.embedded import EmbeddedServer


@pytest.fixture
async def own_server(server_dir: Path, pg_bin: Path | None) -> AsyncIterator[EmbeddedServer]:
    """With every safety on, as its users have it."""
    server = EmbeddedServer(server_dir / "data", pg_bin)
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.stop)


@pytest.fixture
async def slow_server(server_dir: Path, pg_bin: Path | None) -> AsyncIterator[EmbeddedServer]:
    """It writes down by itself what nobody waits for, but only after a while."""
    server = EmbeddedServer(server_dir / "data", pg_bin, settings={"wal_writer_delay": "10s"})
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.stop)
