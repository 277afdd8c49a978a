"""The worker's side of streams: what comes is stored soon, in few commits, once, and never in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.nexus.housekeeping import Housekeeping
from pgnexus.nexus.streams.chunks import ChunkWriter
from pgnexus.providers.provider import Delta
from tests.system import fast, sql, until

LARGEST = 100_000


@pytest.fixture
async def writer(nexus_url: str) -> AsyncIterator[ChunkWriter]:
    """Under the nexus role, as it works."""
    db = await Database.open(nexus_url)
    made = ChunkWriter(db, largest=LARGEST)
    yield made
    await made.close()
    await db.close()


async def rows(db: Database, request_id: UUID) -> list[Any]:
    return await sql(db, "select * from nexus_api.read_chunks(%s, 0, 100000)", request_id)


async def told(db: Database, request_id: UUID) -> list[Any]:
    """Chunks in short: their number, and their text or that they discard."""
    return [(row.number, None if row.discard else row.text) for row in await rows(db, request_id)]


async def commits(db: Database, request_id: UUID) -> list[Any]:
    """The transactions that wrote the chunks there are, with how many rows each."""
    return await sql(
        db,
        "select xmin::text, count(*) as rows from nexus.chunks where request_id = %s group by 1",
        request_id,
    )


async def test_pieces_are_stored_in_order_and_the_rest_before_the_end(
    writer: ChunkWriter, db: Database
) -> None:
    stream = writer.open(uuid4(), 1)
    text = [f"{number} " for number in range(500)]
    for piece in text:
        stream.put(Delta(text=piece))
        await asyncio.sleep(0)
    await stream.flush()
    found = await rows(db, stream.request_id)
    assert "".join(row.text for row in found) == "".join(text)
    assert [row.number for row in found] == list(range(1, len(found) + 1))


async def test_at_most_twenty_commits_a_second_a_stream(writer: ChunkWriter, db: Database) -> None:
    stream = writer.open(uuid4(), 1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while loop.time() < begun + 1:
        stream.put(Delta(text="x"))
        await asyncio.sleep(0.002)
    await stream.flush()
    took = loop.time() - begun
    assert 5 <= len(await commits(db, stream.request_id)) <= 20 * took


async def test_many_streams_share_their_commits(writer: ChunkWriter, db: Database) -> None:
    streams = [writer.open(uuid4(), 1) for _ in range(50)]
    for _ in range(30):
        for stream in streams:
            stream.put(Delta(text="x"))
        await asyncio.sleep(0.01)
    await asyncio.gather(*(stream.flush() for stream in streams))
    [row] = await sql(
        db, "select count(distinct xmin::text) as commits, count(*) as chunks from nexus.chunks"
    )
    assert row.chunks >= 150
    assert row.commits <= row.chunks / 25


async def test_every_kind_of_piece(writer: ChunkWriter, db: Database) -> None:
    stream = writer.open(uuid4(), 1)
    stream.put(Delta(reasoning="I "))
    stream.put(Delta(reasoning="see."))
    function = {"name": "look_up", "arguments": ""}
    stream.put(Delta(tool_calls=({"index": 0, "id": "c1", "type": "function", "function": function},)))
    for piece in ('{"a"', ": 1}"):
        stream.put(Delta(tool_calls=({"index": 0, "function": {"arguments": piece}},)))
    stream.put(Delta(tool_calls=({"index": 1, "id": "c2", "function": {"name": "b", "arguments": "{}"}},)))
    await stream.flush()
    [row] = await rows(db, stream.request_id)
    assert (row.text, row.reasoning, row.discard) == ("", "I see.", False)
    assert [(call["index"], call["function"]["arguments"]) for call in row.tool_calls] == [
        (0, '{"a": 1}'),
        (1, "{}"),
    ]
    assert function["arguments"] == ""  # the vendor's own is left as it is


async def test_what_cannot_be_stored_is_mended(writer: ChunkWriter, db: Database) -> None:
    stream = writer.open(uuid4(), 1)
    stream.put(Delta(text="a\0b\ud800", tool_calls=({"index": 0, "function": {"arguments": "\0"}},)))
    await stream.flush()
    [row] = await rows(db, stream.request_id)
    assert (row.text, row.tool_calls[0]["function"]["arguments"]) == ("a\ufffdb\ufffd", "\ufffd")


class TestDiscards:
    async def test_what_was_stored_is_void_and_goes(self, writer: ChunkWriter, db: Database) -> None:
        stream = writer.open(uuid4(), 1)
        stream.put(Delta(text="one"))
        await stream.flush()
        stream.discard()
        stream.put(Delta(text="two"))
        await stream.flush()
        assert await told(db, stream.request_id) == [(2, None), (3, "two")]

    async def test_what_was_never_stored_needs_no_word(self, writer: ChunkWriter, db: Database) -> None:
        stream = writer.open(uuid4(), 1)
        stream.put(Delta(text="one"))
        stream.discard()
        stream.discard()
        await stream.flush()
        stream.put(Delta(text="two"))
        await stream.flush()
        assert await told(db, stream.request_id) == [(1, "two")]

    async def test_what_is_on_its_way_counts_as_stored(self, writer: ChunkWriter, db: Database) -> None:
        stream = writer.open(uuid4(), 1)
        stream.put(Delta(text="one"))
        while not stream._under_way:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)
        stream.discard()
        await stream.flush()
        assert await told(db, stream.request_id) == [(2, None)]
        stream.discard()  # nothing was said since
        stream.put(Delta(text="two"))
        await stream.flush()
        assert await told(db, stream.request_id) == [(2, None), (3, "two")]


class TestClaims:
    async def test_the_next_claim_goes_on_with_higher_numbers(
        self, writer: ChunkWriter, db: Database
    ) -> None:
        name = uuid4()
        first, second = writer.open(name, 1), writer.open(name, 2)
        first.put(Delta(text="one"))
        await first.flush()
        second.put(Delta(text="two"))
        await second.flush()
        [discard, chunk] = await told(db, name)
        assert (discard[1], chunk[1]) == (None, "two")
        assert 1 < discard[0] == chunk[0] - 1

    async def test_a_worker_that_was_given_up_mixes_nothing_in(
        self, writer: ChunkWriter, nexus_url: str, db: Database
    ) -> None:
        other = ChunkWriter(db, largest=LARGEST)
        name = uuid4()
        frozen, late, new = writer.open(name, 1), writer.open(name, 1), other.open(name, 2)
        frozen.put(Delta(text="one"))
        await frozen.flush()
        new.put(Delta(text="two"))
        await new.flush()
        for stream in (frozen, late):
            stream.put(Delta(text="three"))
            await stream.flush()
            stream.put(Delta(text="four"))
            await stream.flush()
        assert [text for _, text in await told(db, name)] == [None, "two"]
        new.put(Delta(text="five"))
        await new.flush()
        assert [text for _, text in await told(db, name)] == [None, "two", "five"]
        await other.close()

    async def test_given_back_without_counting_an_attempt(self, writer: ChunkWriter, db: Database) -> None:
        name = uuid4()
        for text in ("one", "two"):
            stream = writer.open(name, 1)
            stream.put(Delta(text=text))
            await stream.flush()
        assert [text for _, text in await told(db, name)] == [None, "two"]


class TestBounds:
    async def test_no_more_is_stored_than_the_largest_answer(self, writer: ChunkWriter, db: Database) -> None:
        stream = writer.open(uuid4(), 1)
        for _ in range(30):
            stream.put(Delta(text="x" * 10_000))
            await stream.flush()
        assert sum(len(row.text) for row in await rows(db, stream.request_id)) == LARGEST
        stream.discard()
        stream.put(Delta(text="again"))
        await stream.flush()
        assert [text for _, text in await told(db, stream.request_id)] == [None, "again"]

    async def test_flushes_that_were_cut_off_are_said_again_and_stored_once(
        self, writer: ChunkWriter, db: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit, cuts = writer._db.query, 0

        async def cut_off(name: str, params: Any = None) -> Any:
            nonlocal cuts
            found = await commit(name, params)
            cuts += 1
            if cuts % 2:
                raise DatabaseUnavailable("cut off after the commit")
            return found

        monkeypatch.setattr(writer._db, "query", cut_off)
        stream, other = writer.open(uuid4(), 1), writer.open(uuid4(), 1)
        for number in range(4):
            for one in (stream, other):
                one.put(Delta(text=f"{number} "))
            await stream.flush()
            if number == 1:
                stream.discard()
        await other.flush()
        assert cuts >= 8
        assert [text for _, text in await told(db, stream.request_id)] == [None, "2 ", "3 "]
        assert "".join(row.text for row in await rows(db, other.request_id)) == "0 1 2 3 "

    async def test_what_fails_for_the_moment_is_tried_again(
        self, writer: ChunkWriter, db: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit, faults = writer._db.query, [psycopg.errors.DeadlockDetected("x"), DatabaseUnavailable("y")]

        async def failing(name: str, params: Any = None) -> Any:
            if faults:
                raise faults.pop()
            return await commit(name, params)

        monkeypatch.setattr(writer._db, "query", failing)
        stream = writer.open(uuid4(), 1)
        stream.put(Delta(text="one"))
        assert await until(lambda: told(db, stream.request_id)) == [(1, "one")]

    async def test_a_database_that_hangs_keeps_nobody_waiting(
        self, writer: ChunkWriter, database_url: str, db: Database
    ) -> None:
        stream = writer.open(uuid4(), 1)
        async with await psycopg.AsyncConnection.connect(database_url) as blocker:
            await blocker.execute("lock table nexus.streams in access exclusive mode")
            for _ in range(10_000):
                stream.put(Delta(text="x"))
            await stream.flush()
            await blocker.rollback()
        found = await until(lambda: rows(db, stream.request_id))
        assert [len(row.text) for row in found] == [10_000]

    async def test_a_stream_that_the_database_refuses_spoils_no_other(
        self, writer: ChunkWriter, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        sound, faulty = writer.open(uuid4(), 1), writer.open(uuid4(), 1)
        faulty.put(Delta(text="x"))
        faulty._pending.texts[0] = "\0"  # as if `clean` had missed it
        sound.put(Delta(text="y"))
        await asyncio.gather(sound.flush(), faulty.flush())
        faulty.put(Delta(text="z"))
        await faulty.flush()
        assert (await told(db, sound.request_id), await told(db, faulty.request_id)) == ([(1, "y")], [])
        assert str(faulty.request_id) in caplog.text

    async def test_closing_stores_what_there_is(self, writer: ChunkWriter, db: Database) -> None:
        stream = writer.open(uuid4(), 1)
        for piece in ("one ", "two"):
            stream.put(Delta(text=piece))
        await writer.close()
        stream.put(Delta(text="three"))
        await stream.flush()
        assert await told(db, stream.request_id) == [(1, "one two")]


class TestPruning:
    @staticmethod
    async def chunks_of(writer: ChunkWriter, db: Database, status: str | None, age: str) -> UUID:
        """A stream that began, and if it has ended did so, that long ago."""
        stream = writer.open(uuid4(), 1)
        stream.put(Delta(text="x"))
        await stream.flush()
        await sql(
            db,
            "update nexus.streams set begun_at = now() - %s::interval where request_id = %s",
            age,
            stream.request_id,
        )
        if status is not None:
            ends = [age if status == end else None for end in ("completed", "failed")]
            await sql(
                db,
                """insert into pgflow.runs (run_id, flow_slug, status, input, completed_at, failed_at)
                   values (%s, 'llm_request_workflow', %s, '{}', now() - %s::interval, now() - %s::interval)""",
                stream.request_id,
                status,
                *ends,
            )
        return stream.request_id

    async def test_what_has_ended_goes_after_its_time(
        self, writer: ChunkWriter, nexus_url: str, db: Database
    ) -> None:
        gone = [
            await self.chunks_of(writer, db, *case)
            for case in (("completed", "11 min"), ("failed", "11 min"), (None, "11 min"), ("started", "25 h"))
        ]
        kept = [
            await self.chunks_of(writer, db, *case)
            for case in (("completed", "9 min"), ("started", "11 min"), (None, "9 min"), ("started", "23 h"))
        ]
        nexus = await Database.open(nexus_url)
        housekeeping = Housekeeping(nexus, fast(nexus_url, chunk_ttl=600))
        housekeeping.start()

        async def only_kept() -> bool:
            found = await sql(db, "select request_id from nexus.streams")
            return {row.request_id for row in found} == set(kept)

        await until(only_kept)
        await housekeeping.stop()
        await nexus.close()
        found = {row.request_id for row in await sql(db, "select request_id from nexus.chunks")}
        assert (found & set(gone), found) == (set(), set(kept))


@pytest.mark.parametrize(
    "statement",
    [
        "select * from nexus.chunks",
        "select * from nexus.streams",
        "insert into nexus.chunks (request_id, number, text) values (gen_random_uuid(), 1, 'x')",
        "select * from nexus.store_chunks('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')",
        "select nexus.prune_chunks('0 s', 1)",
    ],
)
async def test_the_callers_role_only_reads_and_only_by_id(caller_url: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(caller_url, autocommit=True) as connection:
        await connection.execute("select * from nexus_api.read_chunks(gen_random_uuid(), 0, 1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement)
