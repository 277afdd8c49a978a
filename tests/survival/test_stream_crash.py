"""Streams when the database crashes: a reader that comes back ends with the stored answer."""

from __future__ import annotations

import signal

from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.errors import DatabaseUnavailable
from tests.caller.played_nexus import played_nexus
from tests.survival.processes import opened, restart
from tests.system import running, sql, until


async def test_another_claim_after_a_crash_does_not_count_from_the_start_again(
    slow_server: EmbeddedServer,
) -> None:
    await schema.migrate(slow_server.url)
    async with (
        opened(slow_server.url) as db,
        running(slow_server.url, nexus=False) as llm,
        played_nexus(slow_server.url) as nexus,
    ):
        handle = await llm.enqueue("simple", "Hello", stream=True)
        part = await nexus.take()
        for piece in ("One ", "two "):
            await part.say(piece)
        async with llm.resume(handle.request_id) as stream:
            seen = [await anext(stream), await anext(stream)]
        assert [chunk.text for chunk in seen] == ["One ", "two "]

        await restart(slow_server, signal.SIGKILL)
        left = await until(lambda: _texts(db))
        assert left == ["One "]  # "two" was not waited for
        await part.give_back()
        part = await nexus.take()
        for piece in ("Three ", "four "):
            await part.say(piece)
        await part.answer("Three four five.")

        again = [chunk async for chunk in llm.resume(handle.request_id, after=seen[-1].number)]
        assert [(chunk.text, chunk.discard) for chunk in again[:2]] == [("", True), ("Three ", False)]
        assert "".join(chunk.text for chunk in again) == "Three four five."


async def _texts(db: Database) -> list[str]:
    try:
        return [row.text for row in await sql(db, "select text from nexus.chunks order by number")]
    except DatabaseUnavailable:
        return []
