"""A database for one test."""

from __future__ import annotations

import sys

import psycopg
import pytest

import pgnexus
from pgnexus.db.cluster import Cluster
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.testing import FakeLLM, temporary_database
from tests.conftest import database_name


async def test_it_has_the_schema_and_goes(server):
    async with temporary_database(server.url("postgres")) as url:
        async with pgnexus.open(database_url=url, providers=FakeLLM("hi")) as llm:
            assert (await llm.call("simple", "x")).text == "hi"
        left_open = psycopg.connect(url)
    with psycopg.connect(server.url("postgres")) as connection:
        found = connection.execute("select from pg_database where datname = %s", [database_name(url)])
        assert found.fetchall() == []
    with pytest.raises(psycopg.OperationalError):
        left_open.execute("select 1")
    left_open.close()


async def test_two_are_apart(server, monkeypatch):
    monkeypatch.setenv("PGNEXUS_TEST_DATABASE_URL", server.url("postgres"))
    async with temporary_database() as one, temporary_database() as other:
        assert one != other


async def test_the_embedded_server_serves_and_stops_with_the_last(server_dir, monkeypatch):
    monkeypatch.delenv("PGNEXUS_TEST_DATABASE_URL", raising=False)
    stops = []
    shut_down = Cluster.shut_down
    monkeypatch.setattr(Cluster, "shut_down", lambda self: (stops.append(self), shut_down(self)))
    async with temporary_database(data_dir=server_dir / "data") as one:
        async with temporary_database(data_dir=server_dir / "data") as other:
            assert one != other
        assert not stops
        async with await psycopg.AsyncConnection.connect(one) as connection:
            await connection.execute("select pgnexus.home()")
    assert len(stops) == 1


async def test_the_server_kept_for_tests_serves_the_whole_process(server_dir, monkeypatch):
    kept = EmbeddedServer(server_dir / "data")
    monkeypatch.delenv("PGNEXUS_TEST_DATABASE_URL", raising=False)
    monkeypatch.setattr(sys.modules["pgnexus.testing.temporary_database"], "_kept_server", lambda: kept)
    async with temporary_database() as first:
        pass
    psycopg.connect(kept.url).close()
    async with temporary_database() as second:
        assert first != second
    assert kept.stop()
