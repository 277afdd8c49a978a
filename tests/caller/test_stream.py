"""Reading an answer while it comes: chunks, discards, the end, coming back, and leaving."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnexus.caller.chunk import Assembly, Chunk, StoredChunk
from pgnexus.caller.service import LLMService
from pgnexus.caller.stream import ResultStream
from pgnexus.db.database import Database
from pgnexus.errors import (
    InvalidRequest,
    RequestCancelled,
    RequestFailed,
    ResultPending,
    ServiceMisused,
    UnknownRequest,
)
from pgnexus.messages import LLMResult
from pgnexus.providers.provider import Delta
from tests.caller.played_nexus import PlayedNexus, played_nexus
from tests.streaming_vendor import StreamingVendor, streaming_vendor
from tests.system import running, sql, started, until

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


@pytest.fixture
async def llm(caller_url: str) -> AsyncIterator[LLMService]:
    """The caller's side under its role; it looks by itself only once a minute."""
    async with running(caller_url, nexus=False, poll_interval=60.0) as service:
        yield service


@pytest.fixture
async def nexus(nexus_url: str) -> AsyncIterator[PlayedNexus]:
    async with played_nexus(nexus_url) as played:
        yield played


def text_of(chunks: list[Chunk]) -> str:
    """What a reader has in the end who does as he is told."""
    texts: list[str] = []
    for chunk in chunks:
        if chunk.discard:
            texts.clear()
        texts.append(chunk.text)
    return "".join(texts)


async def read(stream: ResultStream) -> list[Chunk]:
    return [chunk async for chunk in stream]


async def status(service: LLMService, stream: ResultStream) -> str:
    return (await service.job_result(stream.request_id)).status


class TestReading:
    async def test_chunks_come_while_the_answer_is_given(self, llm: LLMService, nexus: PlayedNexus) -> None:
        async with llm.stream("simple", "Hello", agent_id="a1") as stream:
            part = await nexus.take()
            assert (part.asked["stream"], part.asked["agent_id"]) == (True, "a1")
            found = []
            for piece in ("One ", "two ", "three."):
                await part.say(piece)
                found.append(await anext(stream))
            assert found == [Chunk(1, "One "), Chunk(2, "two "), Chunk(3, "three.")]
            await part.answer("One two three.")
            assert await read(stream) == []
            result = await stream.result()
        assert (result.text, result.request_id) == ("One two three.", stream.request_id)
        assert await status(llm, stream) == "success"

    async def test_reasoning_and_tool_calls(self, llm: LLMService, nexus: PlayedNexus) -> None:
        stream = llm.stream("simple", "Hello")
        reading = asyncio.create_task(read(stream))
        part = await nexus.take()
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        part.stream.put(Delta(reasoning="Hm."))
        part.stream.put(Delta(tool_calls=(call,)))
        await part.stream.flush()
        whole = {key: value for key, value in call.items() if key != "index"}
        await part.answer(None, message={"role": "assistant", "tool_calls": [whole]})
        chunks = await reading
        assert "".join(chunk.reasoning for chunk in chunks) == "Hm."
        assert [call for chunk in chunks for call in chunk.tool_calls] == [call]
        assert (await stream.result()).tool_calls == [whole]

    async def test_what_was_not_streamed_comes_from_the_stored_answer(
        self, llm: LLMService, nexus: PlayedNexus
    ) -> None:
        stream = llm.stream("simple", "Hello")
        reading = asyncio.create_task(read(stream))
        part = await nexus.take()
        await part.say("One ")
        await part.answer("One two.")
        assert [(chunk.text, chunk.discard) for chunk in await reading] == [("One ", False), ("two.", False)]

    async def test_an_answer_without_any_chunk(self, llm: LLMService, nexus: PlayedNexus) -> None:
        stream = llm.stream("simple", "Hello")
        reading = asyncio.create_task(read(stream))
        tool = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message = {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [tool]}
        await (await nexus.take()).answer("All.", message=message)
        [chunk] = await reading
        assert (chunk.text, chunk.reasoning, chunk.tool_calls) == ("All.", "Hm.", ({"index": 0, **tool},))

    async def test_a_call_that_breaks_off_is_discarded(self, llm: LLMService, nexus: PlayedNexus) -> None:
        async with llm.stream("simple", "Hello") as stream:
            part = await nexus.take()
            await part.say("One ")
            assert (await anext(stream)).text == "One "
            part.stream.discard()
            await part.say("Two.")
            await part.answer("Two.")
            assert await read(stream) == [Chunk(2, discard=True), Chunk(3, "Two.")]

    async def test_another_worker_goes_on(self, llm: LLMService, nexus: PlayedNexus) -> None:
        async with llm.stream("simple", "Hello") as stream:
            first = await nexus.take()
            await first.say("One ")
            chunks = [await anext(stream)]
            await first.give_back()
            second = await nexus.take()
            await second.say("Two ")
            await first.say("late")  # thawed, and refused
            await second.say("three.")
            await second.answer("Two three.")
            chunks += await read(stream)
        assert [chunk.text for chunk in chunks if not chunk.discard] == ["One ", "Two ", "three."]
        assert text_of(chunks) == "Two three."
        assert sorted(chunk.number for chunk in chunks) == [chunk.number for chunk in chunks]

    async def test_chunks_that_are_not_the_answer_are_replaced(
        self, llm: LLMService, nexus: PlayedNexus
    ) -> None:
        stream = llm.stream("simple", "Hello")
        reading = asyncio.create_task(read(stream))
        part = await nexus.take()
        await part.say("Rubbish")
        await part.answer("The answer.")
        chunks = await reading
        assert [chunk.discard for chunk in chunks] == [False, True, False]
        assert text_of(chunks) == "The answer."

    async def test_a_failure_is_raised_at_the_end(self, llm: LLMService, nexus: PlayedNexus) -> None:
        async with llm.stream("simple", "Hello") as stream:
            part = await nexus.take()
            await part.say("One ")
            assert (await anext(stream)).text == "One "
            await part.fail()
            with pytest.raises(RequestFailed, match=str(stream.request_id)):
                await read(stream)
            with pytest.raises(RequestFailed):
                await stream.result()

    async def test_the_result_needs_no_reading(self, llm: LLMService, nexus: PlayedNexus) -> None:
        stream = llm.stream("simple", "Hello")
        waiting = asyncio.create_task(stream.result())
        part = await nexus.take()
        await part.say("One.")
        await part.answer("One.")
        assert (await waiting).text == "One."
        assert text_of(await read(stream)) == "One."

    async def test_a_slow_reader_gets_everything(
        self, llm: LLMService, nexus: PlayedNexus, db: Database
    ) -> None:
        async with llm.stream("simple", "Hello") as stream:
            part = await nexus.take()
            await part.say("0 ")
            chunks = [await anext(stream)]
            await sql(
                db,
                """insert into nexus.chunks (request_id, number, text)
                   select %s, n, n - 1 || ' ' from generate_series(2, 3000) n""",
                stream.request_id,
            )
            await part.answer("".join(f"{number} " for number in range(3000)))
            await stream.result()
            chunks += await read(stream)
        assert [chunk.number for chunk in chunks] == list(range(1, 3001))
        assert text_of(chunks) == (await stream.result()).text

    async def test_a_word_that_is_lost_costs_only_time(
        self, caller_url: str, nexus: PlayedNexus, db: Database
    ) -> None:
        async with (
            running(caller_url, nexus=False, poll_interval=1.0) as service,
            service.stream("simple", "Hello") as stream,
        ):
            await (await nexus.take()).say("One ")
            assert (await anext(stream)).text == "One "
            silently = "insert into nexus.chunks (request_id, number, text) values (%s, 2, 'two ')"
            await sql(db, silently, stream.request_id)
            assert (await anext(stream)).text == "two "

    async def test_nothing_is_asked_before_it_is_read(self, llm: LLMService, db: Database) -> None:
        stream = llm.stream("simple", "Hello")
        assert await sql(db, "select 1 from pgnexus.job_results") == []
        await stream.aclose()
        assert await read(stream) == []
        with pytest.raises(ServiceMisused, match="closed before its end"):
            await stream.result()

    async def test_faults_are_told_at_once(self, llm: LLMService) -> None:
        with pytest.raises(InvalidRequest, match="temprature"):
            llm.stream("simple", "Hello", temprature=1)  # type: ignore[call-arg]
        with pytest.raises(InvalidRequest, match="connection"):
            llm.stream("simple", "Hello", connection=object())  # type: ignore[arg-type]

    async def test_past_its_patience(self, llm: LLMService) -> None:
        handle = await llm.enqueue("simple", "Hello", stream=True)
        with pytest.raises(ResultPending):
            await read(llm.resume(handle.request_id, timeout=0.05))
        assert await handle.status() == "enqueued"

    async def test_stopped_meanwhile(self, caller_url: str) -> None:
        async with running(caller_url, nexus=False) as service:
            reading = asyncio.create_task(read(service.stream("simple", "Hello")))
            await until(lambda: _in_flight(service))
        with pytest.raises(ServiceMisused, match="stopped"):
            await reading


async def _in_flight(service: LLMService) -> bool:
    return bool(await service.search())


class TestComingBack:
    async def test_after_a_number_in_another_process(
        self, llm: LLMService, caller_url: str, nexus: PlayedNexus
    ) -> None:
        handle = await llm.enqueue("simple", "Hello", stream=True)
        part = await nexus.take()
        async with llm.resume(handle.request_id) as stream:
            await part.say("One ")
            await part.say("two ")
            chunks = [await anext(stream), await anext(stream)]
        async with running(caller_url, nexus=False) as other:
            resumed = other.resume(str(handle.request_id), after=chunks[0].number)
            assert await anext(resumed) == chunks[1]
            await part.say("three.")
            assert await anext(resumed) == Chunk(3, "three.")
            await part.answer("One two three.")
            assert await read(resumed) == []
            assert (await resumed.result()).text == "One two three."

    async def test_after_its_end(self, llm: LLMService, nexus: PlayedNexus, db: Database) -> None:
        handle = await llm.enqueue("simple", "Hello", stream=True)
        part = await nexus.take()
        await part.say("One ")
        await part.say("two.")
        await part.answer("One two.")
        await handle.result(timeout=10)
        assert [chunk.text for chunk in await read(llm.resume(handle.request_id))] == ["One ", "two."]
        assert [chunk.text for chunk in await read(llm.resume(handle.request_id, after=1))] == ["two."]
        assert await read(llm.resume(handle.request_id, after=2)) == []
        await sql(db, "delete from nexus.chunks")  # as housekeeping does
        assert [chunk.text for chunk in await read(llm.resume(handle.request_id))] == ["One two."]
        again = await read(llm.resume(handle.request_id, after=1))
        assert [(chunk.text, chunk.discard) for chunk in again] == [("", True), ("One two.", False)]

    async def test_after_a_claim_that_is_void(self, llm: LLMService, nexus: PlayedNexus) -> None:
        handle = await llm.enqueue("simple", "Hello", stream=True)
        first = await nexus.take()
        await first.say("One ")
        await first.say("two ")
        await first.give_back()
        second = await nexus.take()
        await second.say("Three.")
        await second.answer("Three.")
        await handle.result(timeout=10)
        assert [chunk.text for chunk in await read(llm.resume(handle.request_id))] == ["Three."]
        again = await read(llm.resume(handle.request_id, after=1))
        assert [(chunk.text, chunk.discard) for chunk in again] == [("", True), ("Three.", False)]

    async def test_chunks_that_a_crash_took_back(
        self, llm: LLMService, nexus: PlayedNexus, db: Database
    ) -> None:
        handle = await llm.enqueue("simple", "Hello", stream=True)
        part = await nexus.take()
        for piece in ("One ", "two ", "three "):
            await part.say(piece)
        await sql(db, "delete from nexus.chunks where number = 2")
        await part.say("four.")
        async with llm.resume(handle.request_id) as stream:
            chunks = [await anext(stream), await anext(stream)]
            assert [chunk.discard for chunk in chunks] == [False, True]
            await part.answer("One two three four.")
            chunks += await read(stream)
        assert text_of(chunks) == "One two three four."

    async def test_of_a_request_that_is_not_there(self, llm: LLMService) -> None:
        with pytest.raises(UnknownRequest):
            await read(llm.resume(uuid4()))
        with pytest.raises(InvalidRequest, match="after"):
            llm.resume(uuid4(), after=-1)

    async def test_the_same_idempotency_key_is_the_same_stream(
        self, llm: LLMService, nexus: PlayedNexus
    ) -> None:
        first = llm.stream("simple", "Hello", idempotency_key="k")
        reading = asyncio.create_task(read(first))
        part = await nexus.take()
        await part.say("One.")
        second = llm.stream("simple", "Hello", idempotency_key="k")
        assert (await anext(second)).text == "One."
        await second.aclose()
        assert second.request_id == first.request_id
        await part.answer("One.")
        assert text_of(await reading) == "One."


class TestLeaving:
    async def test_a_block_that_is_left_cancels(self, llm: LLMService, nexus: PlayedNexus) -> None:
        async with llm.stream("simple", "Hello") as stream:
            part = await nexus.take()
            await part.say("One ")
            await anext(stream)
        assert await status(llm, stream) == "cancelled"
        assert await nexus.held() == set()
        with pytest.raises(ServiceMisused):
            await stream.result()

    async def test_break_cancels(self, llm: LLMService, nexus: PlayedNexus) -> None:
        async def first_word() -> str:
            async for chunk in llm.stream("simple", "Hello"):
                return chunk.text
            return ""

        reading = asyncio.create_task(first_word())
        part = await nexus.take()
        await part.say("One ")
        assert await reading == "One "
        gc.collect()
        assert await until(lambda: _cancelled(llm))

    async def test_a_reader_that_is_cancelled_cancels(self, llm: LLMService, nexus: PlayedNexus) -> None:
        stream = llm.stream("simple", "Hello")
        reading = asyncio.create_task(read(stream))
        await nexus.take()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await status(llm, stream) == "cancelled"

    async def test_cancelled_twice_it_is_cancelled_all_the_same(
        self, llm: LLMService, nexus: PlayedNexus
    ) -> None:
        reading = asyncio.create_task(read(llm.stream("simple", "Hello")))
        await nexus.take()
        reading.cancel()
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await until(lambda: _cancelled(llm))

    @pytest.mark.parametrize("options", [{"cancel_on_exit": False}, {"idempotency_key": "k"}])
    async def test_unless_it_shall_go_on(
        self, llm: LLMService, nexus: PlayedNexus, options: dict[str, Any]
    ) -> None:
        async with llm.stream("simple", "Hello", **options) as stream:
            part = await nexus.take()
        await part.answer("One.")
        assert (await llm.wait(stream.request_id, timeout=10)).text == "One."

    async def test_a_stream_that_was_resumed_cancels_only_when_told(
        self, llm: LLMService, nexus: PlayedNexus
    ) -> None:
        handle = await llm.enqueue("simple", "Hello", stream=True)
        await nexus.take()
        async with llm.resume(handle.request_id):
            pass
        assert await handle.status() == "enqueued"
        async with llm.resume(handle.request_id, cancel_on_exit=True):
            pass
        assert await handle.status() == "cancelled"

    async def test_cancelled_by_another_it_raises(self, llm: LLMService, nexus: PlayedNexus) -> None:
        stream = llm.stream("simple", "Hello")
        reading = asyncio.create_task(read(stream))
        await nexus.take()
        assert await llm.cancel(stream.request_id)
        with pytest.raises(RequestCancelled):
            await reading


class TestCallersThatLeave:
    """`call`, whose caller is the only one who knows the request."""

    async def test_a_call_that_is_cancelled_cancels_its_request(
        self, llm: LLMService, nexus: PlayedNexus
    ) -> None:
        calling = asyncio.create_task(llm.call("simple", "Hello"))
        await nexus.take()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await _cancelled(llm)
        assert await nexus.held() == set()

    async def test_a_wait_that_is_cut_short(self, llm: LLMService, nexus: PlayedNexus) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await llm.call("simple", "Hello")
        assert await _cancelled(llm)

    async def test_cancelled_while_it_is_being_stored(
        self, llm: LLMService, db: Database, database_url: str
    ) -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as blocker:
            await blocker.execute("lock table pgnexus.job_results in exclusive mode")
            calling = asyncio.create_task(llm.call("simple", "Hello"))
            await until(lambda: _blocked(db))
            calling.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await _cancelled(llm)

    async def test_cancelled_before_it_is_sent_nothing_is_stored(self, llm: LLMService) -> None:
        calling = asyncio.create_task(llm.call("simple", "Hello"))
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await llm.search() == []

    async def test_many_that_leave_at_once(self, llm: LLMService) -> None:
        calls = [asyncio.create_task(llm.call("simple", f"question {number}")) for number in range(300)]
        await until(lambda: _stored(llm, 300))
        for call in calls:
            call.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError)
            for end in await asyncio.gather(*calls, return_exceptions=True)
        )
        assert {row.status for row in await llm.search(limit=1000)} == {"cancelled"}

    @pytest.mark.parametrize(
        "options",
        [{"idempotency_key": "k"}, {"request_id": str(uuid4())}, {"cancel_on_exit": False}],
    )
    async def test_a_request_that_somebody_can_come_back_for_goes_on(
        self, llm: LLMService, nexus: PlayedNexus, options: dict[str, Any]
    ) -> None:
        calling = asyncio.create_task(llm.call("simple", "Hello", **options))
        part = await nexus.take()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await part.answer("One.")
        assert (await llm.wait(part.asked["request_id"], timeout=10)).text == "One."

    async def test_or_not_if_it_says_so(self, llm: LLMService, nexus: PlayedNexus) -> None:
        calling = asyncio.create_task(
            llm.call_with_prompt("simple", "Hello", idempotency_key="k", cancel_on_exit=True)
        )
        await nexus.take()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await _cancelled(llm)


class TestTheWholeWay:
    """Vendor, nexus and caller under their roles."""

    @pytest.fixture
    async def vendor(self) -> AsyncIterator[StreamingVendor]:
        async with streaming_vendor() as serving:
            yield serving

    @pytest.fixture
    async def asked(
        self, vendor: StreamingVendor, caller_url: str, nexus_url: str
    ) -> AsyncIterator[LLMService]:
        async with (
            started(nexus_url, vendor.base_url, caller=False, router_retries=1),
            started(caller_url, nexus=False) as app,
        ):
            yield app.service

    async def test_the_first_words_are_here_before_the_last_are_said(
        self, asked: LLMService, vendor: StreamingVendor
    ) -> None:
        async with asked.stream("simple", "Hello") as stream:
            first = await anext(stream)
            assert (await asked.job_result(stream.request_id)).status == "enqueued"
            chunks = [first, *await read(stream)]
        assert text_of(chunks) == vendor.text("Hello", 1) == (await stream.result()).text
        assert 3 <= len(chunks) < vendor.words

    async def test_tool_calls_come_in_pieces_that_make_the_stored_ones(
        self, caller_url: str, nexus_url: str, llmock: Any
    ) -> None:
        llmock.call_tool("look_up", {"alpha": 1, "beta": "two"})
        async with (
            started(nexus_url, llmock.base_url("openai"), caller=False),
            started(caller_url, nexus=False) as app,
        ):
            stream = app.service.stream("simple", "Look it up.", tools=TOOLS)
            chunks = await read(stream)
            [call] = (await stream.result()).tool_calls
        pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
        assert not any(chunk.discard for chunk in chunks)
        assert (
            "".join(piece["function"].get("arguments", "") for piece in pieces)
            == call["function"]["arguments"]
        )
        assert (pieces[0]["id"], pieces[0]["function"]["name"]) == (call["id"], "look_up")
        assert {piece["index"] for piece in pieces} == {0}

    async def test_half_an_answer_is_discarded_and_asked_again(
        self, asked: LLMService, vendor: StreamingVendor
    ) -> None:
        vendor.breaks = {1}
        chunks = await read(asked.stream("simple", "Hello"))
        assert any(chunk.discard for chunk in chunks)
        assert text_of(chunks) == vendor.text("Hello", 2)

    async def test_who_leaves_closes_the_connection_to_the_vendor(
        self, asked: LLMService, vendor: StreamingVendor
    ) -> None:
        async with asked.stream("simple", "Hello") as stream:
            await anext(stream)
        assert await until(lambda: _left(vendor)) == ["Hello"]
        assert await status(asked, stream) == "cancelled"

    async def test_a_call_that_is_left_closes_it_too(
        self, asked: LLMService, vendor: StreamingVendor
    ) -> None:
        vendor.pause = 1.0
        calling = asyncio.create_task(asked.call("simple", "Hello"))
        await until(lambda: _called(vendor))
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await until(lambda: _left(vendor)) == ["Hello"]


async def _left(vendor: StreamingVendor) -> list[str]:
    return vendor.left


async def _called(vendor: StreamingVendor) -> int:
    return vendor.calls.total()


async def _stored(service: LLMService, count: int) -> bool:
    return len(await service.search(limit=1000)) == count


async def _cancelled(service: LLMService) -> bool:
    return [row.status for row in await service.search()] == ["cancelled"]


async def _blocked(db: Database) -> bool:
    [row] = await sql(
        db,
        """select count(*) as waiting from pg_locks l join pg_database d on d.oid = l.database
           where not l.granted and d.datname = current_database()""",
    )
    return bool(row.waiting)


class Story:
    """What claims of a request wrote, how a database crash thinned it out, and how a reader got it."""

    def __init__(self, draw: Any) -> None:
        self.rows: list[StoredChunk] = []
        self.text = ""
        self._draw = draw
        number = 0
        for _ in range(draw(st.integers(1, 3))):
            if self.rows:
                number += draw(st.sampled_from([1, 1000]))
                self.rows.append(StoredChunk(number, discard=True))
            pieces = draw(st.lists(st.sampled_from(["a", "b", "ab"]), max_size=5))
            for piece in pieces:
                number += 1
                self.rows.append(StoredChunk(number, text=piece))
            self.text = "".join(pieces)

    def result(self) -> LLMResult:
        more = self._draw(st.sampled_from(["", "c", "ab"]))  # never streamed
        text = self._draw(st.sampled_from([self.text + more, "another"]))
        return LLMResult(request_id=uuid4(), status="success", response=text)


@pytest.mark.parametrize(
    "calls",
    [{}, "text", [1], [{"index": []}], [{"index": 0, "function": "f"}], [{"function": {"arguments": 1}}]],
)
def test_odd_tool_calls_of_another_program_are_no_fault_of_the_reader(calls: Any) -> None:
    assembly = Assembly()
    assert assembly.take(StoredChunk(1, text="Hello", tool_calls=calls)) is not None
    rest = assembly.finish(LLMResult(request_id=uuid4(), status="success", response="Hello"))
    assert "".join(chunk.text for chunk in rest) in ("", "Hello")


@given(st.data())
def test_whatever_is_lost_a_reader_ends_with_the_stored_answer(data: st.DataObject) -> None:
    story = Story(data.draw)
    found: list[Chunk] = []
    rows, position = story.rows, 0
    result = story.result()
    for _ in range(data.draw(st.integers(0, 3))):  # connections that are dropped
        assembly = Assembly(found[-1].number if found else 0)
        until_row = data.draw(st.integers(position, len(rows)))
        for row in rows[:until_row]:
            if (chunk := assembly.take(row)) is not None:
                found.append(chunk)
        position = until_row
        lost = data.draw(st.sets(st.integers(0, max(0, len(rows) - 1)), max_size=2))
        if data.draw(st.booleans()):  # a crash of the database, or housekeeping
            rows = [row for place, row in enumerate(rows) if place not in lost]
            position = 0
    assembly = Assembly(found[-1].number if found else 0)
    found += [chunk for row in rows if (chunk := assembly.take(row)) is not None]
    found += assembly.finish(result)
    assert text_of(found) == result.text
    assert all(not chunk.text for chunk in found if chunk.discard)


class Disk:
    """What a crash of the database leaves of its chunks: those that were written down, whether by and by or at once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._claims: list[Any] = []

    async def write(self) -> None:
        async with self._db.connection() as connection, connection.transaction():
            await connection.execute("lock table nexus.streams, nexus.chunks in share mode")
            await connection.execute("drop table if exists public.on_disk")
            await connection.execute("create table public.on_disk as select * from nexus.chunks")
            self._claims = await self._holders(connection)

    async def crash(self) -> None:
        async with self._db.connection() as connection, connection.transaction():
            await connection.execute("lock table nexus.streams, nexus.chunks in exclusive mode")
            if await self._holders(connection) == self._claims:
                await connection.execute("delete from nexus.chunks")
                await connection.execute("insert into nexus.chunks select * from public.on_disk")
                return
        await self.write()  # the first flush of a claim is waited for, and all before it with it

    @staticmethod
    async def _holders(connection: psycopg.AsyncConnection[Any]) -> list[Any]:
        return await (await connection.execute("select claim from nexus.streams")).fetchall()


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_a_reader_ends_with_the_stored_answer(
    llm: LLMService, nexus: PlayedNexus, db: Database, seed: int
) -> None:
    chance = random.Random(seed)
    disk = Disk(db)
    await disk.write()
    handle = await llm.enqueue("simple", "Hello", stream=True)
    found: list[Chunk] = []
    reading = asyncio.create_task(_restless(llm, handle.request_id, found, random.Random(seed)))
    part, old, text = await nexus.take(), [], ""
    events = {"say": 9, "flush": 6, "write": 2, "discard": 1, "give back": 1, "thaw": 1, "crash": 1}
    for number in range(60):
        [what] = chance.choices(list(events), list(events.values()))
        if what == "say":
            part.stream.put(Delta(text=f"{number} "))
            text += f"{number} "
        elif what == "flush":
            await part.stream.flush()
        elif what == "discard":
            part.stream.discard()
            text = ""
        elif what == "give back":
            old.append(part)
            await part.give_back()
            part, text = await nexus.take(), ""
        elif what == "thaw" and old:
            chance.choice(old).stream.put(Delta(text="late "))
        elif what == "write":
            await disk.write()
        elif what == "crash":
            await disk.crash()
    await part.answer(text + chance.choice(["", "and more"]))
    async with asyncio.timeout(20):
        await reading
    assert text_of(found) == (await handle.result(timeout=10)).text


async def _restless(llm: LLMService, request_id: UUID, found: list[Chunk], chance: random.Random) -> None:
    """Read some chunks, drop the stream, go on after the last one, to the end."""
    while True:
        left = chance.randint(1, 8)
        async for chunk in llm.resume(request_id, after=found[-1].number if found else 0):
            found.append(chunk)
            left -= 1
            if left == 0:
                break
        else:
            return
