"""Limits when the database crashes: what a worker had given back stays given back."""

from __future__ import annotations

import signal

from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from tests.nexus.gates import gate, passed
from tests.survival.processes import opened, restart
from tests.system import sql, until


async def test_a_call_at_once_that_was_given_back_is_free_after_a_crash(slow_server: EmbeddedServer) -> None:
    await schema.migrate(slow_server.url)
    limits = {"openai": {"concurrent_calls": 1}}
    async with opened(slow_server.url) as db, gate(db, limits=limits) as one:
        permit = await passed(one)
        await sql(db, "create table public.written_down ()")  # and with it all that was done before
        permit.settle(1, None)
        await until(lambda: _free(db))
        await restart(slow_server, signal.SIGKILL)
        (await passed(one)).settle(1, None)


async def _free(db: Database) -> bool:
    return await sql(db, "select sum(leased) as leased from nexus.holdings") == [(0,)]
