"""App under the roles of the two sides: what it may not do it says at the start, or leaves to others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import pgnexus
from pgnexus.app import App, database_url
from pgnexus.db.connection import connect
from pgnexus.db.database import Database
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseUnavailable, SchemaMismatch, UnsuitableDatabase
from pgnexus.nexus.service import NexusService
from pgnexus.settings import Settings
from pgnexus.testing import FakeLLM
from tests.system import fast, running, sql, started, until


async def test_a_callers_role_leaves_the_nexus_to_others(caller_url: str) -> None:
    async with running(caller_url, nexus=None) as service:
        handle = await service.enqueue("simple", "Hello")
        assert await handle.status() == "enqueued"
        assert await service.live_instances() == 0


@pytest.mark.parametrize("nexus", [True, None])
async def test_the_nexus_role_cannot_be_the_caller_side(nexus_url: str, nexus: bool | None) -> None:
    with pytest.raises(UnsuitableDatabase, match="pgnexus_nexus may not be the caller side"):
        await App(fast(nexus_url), nexus=nexus).start()


async def test_the_callers_role_cannot_be_the_nexus_side(caller_url: str, db: Database) -> None:
    with pytest.raises(UnsuitableDatabase, match="grant pgnexus_nexus to it"):
        await App(fast(caller_url), nexus=True).start()
    [row] = await db.query("live_instances", {"lease": 60})
    assert row.instances == 0


async def test_a_nexus_that_takes_over_only_after_some_tries_leaves_nothing_of_them(
    database_url: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, tries = NexusService.start, 0

    async def fails_at_first(nexus: NexusService) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise DatabaseUnavailable("away again")
        await start(nexus)

    async def listeners() -> int:
        [row] = await sql(
            db,
            "SELECT count(*) AS n FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'pgnexus listener'",
        )
        return int(row.n)

    async with started(database_url, caller=False, nexus=True) as first:
        app = App(fast(database_url), nexus=None)
        await app.start()
        try:
            assert app.nexus is None
            monkeypatch.setattr(NexusService, "start", fails_at_first)
            await first.stop()

            async def took_over() -> bool:
                return app.nexus is not None and await listeners() == 2

            await until(took_over)
            assert tries == 4
        finally:
            await app.stop()


async def test_an_embedded_server_of_another_build_names_its_directory_and_what_to_type(
    server_dir: Path, pg_bin: Path | None
) -> None:
    if pg_bin is not None:
        pytest.skip("the embedded server is the one of the wheel")
    settings = Settings.load(data_dir=server_dir / "data")
    async with database_url(settings) as url:
        connection = await connect(url, timeout=5, application_name="test")
        async with connection:
            await connection.execute("UPDATE pgnexus.schema_migrations SET checksum = 'of another'")
            await connection.execute(load("publish_migrations"))
    with pytest.raises(SchemaMismatch, match="another build") as caught:
        async with database_url(settings):
            pass
    assert f"{server_dir}/data: set PGNEXUS_DATA_DIR" in str(caught.value)
    assert "of another" not in str(caught.value).replace("of another build", "")


async def test_an_embedded_server_that_is_killed_is_started_again_by_who_uses_it(
    server_dir: Path, pg_bin: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    if pg_bin is not None:
        pytest.skip("the embedded server is the one of the wheel")
    data_dir = server_dir / "data"
    async with pgnexus.open(data_dir=data_dir, providers=FakeLLM("Paris.")) as llm:
        handle = await llm.enqueue("simple", "The capital of France?", delay=1.0)
        postmaster = int((data_dir / "postgresql" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGKILL)

        async def answered() -> str | None:
            try:
                return (await handle.result()).text
            except DatabaseUnavailable:
                return None

        assert await until(answered, within=60) == "Paris."
    assert f"the embedded server in {data_dir} is gone" in caplog.text
