"""Bad input: a clear error at the call, before anything is stored."""

from __future__ import annotations

import asyncio
import multiprocessing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from system import fast, nothing_stored, running, started

from pgnexus.caller.service import LLMService
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier
from pgnexus.errors import DatabaseUnavailable, InvalidRequest, InvalidSettings, ServiceMisused

IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def user(content: object) -> list:
    return [{"role": "user", "content": content}]


@pytest.fixture
async def service(database_url):
    async with running(database_url, nexus=False) as service:
        yield service


MESSAGES = {
    "no messages": ([], "messages"),
    "an empty text": ("", "messages"),
    "nothing": (None, "messages"),
    "a number": (5, "messages"),
    "bytes": (b"Hello", "messages"),
    "no message": (["Hello"], r"messages\[0\]"),
    "an unknown role": ([{"role": "wizard", "content": "Hello"}], r"messages\[0\]\.role"),
    "no content": ([{"role": "user"}], r"messages\[0\].*content"),
    "blank content": (user(""), r"messages\[0\].*blank"),
    "a text of blanks": (" \n", "blank"),
    "no parts": (user([]), r"messages\[0\].*content"),
    "a part that has no type": (user([{"text": "Hello"}]), r"content\[0\]"),
    "a tool's answer to nothing": ([{"role": "tool", "content": "42"}], "tool_call_id"),
    "20 MB": ("x" * 20_000_000, "max_message_bytes"),
    "a NUL": ("a\0b", "NUL"),
    "a NUL in a name": ([{"role": "user", "content": "x", "x\0": 1}], "NUL"),
    "a lone surrogate": ("a\ud800", "surrogate"),
    "20,000 levels": (user([{"type": "text", "text": "x", "deep": nested(20_000)}]), "deep"),
}
OPTIONS = {
    "an option that does not exist": ({"temprature": 1}, "temperature"),
    "a parameter of ours": ({"settings": 1}, "settings"),
    "a field that nobody knows": ({"unknown": {"colour": "red"}}, "unknown"),
    "a complexity that does not exist": ({"complexity": "hard"}, "complexity"),
    "two complexities": ({"complexity": "complex"}, "complexity"),
    "a negative timeout": ({"timeout": -1}, "timeout"),
    "no timeout at all": ({"timeout": 0}, "timeout"),
    "a timeout without end": ({"timeout": float("inf")}, "timeout"),
    "a workflow that is no text": ({"workflow": 5}, "workflow"),
    "a timeout that is NaN": ({"timeout": float("nan")}, "timeout"),
    "a delay too large for anything": ({"delay": 10**5000}, "ten years"),
    "a timeout that is no number": ({"timeout": "60"}, "timeout"),
    "a timeout of a thousand years": ({"timeout": 4e10}, "timeout"),
    "a negative delay": ({"delay": -1}, "delay: -1 must be 0 seconds or more"),
    "a model that is a complexity": ({"model": "simple"}, "model: 'simple' is a complexity"),
    "a list of no stops": ({"stop": []}, "stop"),
    "a choice of tools that is none": ({"tool_choice": "never"}, "tool_choice"),
    "a format that does not exist": ({"response_format": {"type": "xml"}}, "response_format: its type"),
    "a seed of 65 bits": ({"seed": 2**64}, "seed"),
    "a long path": ({"metadata": {"a" * 900: {"b": float("nan")}}}, r"metadata\.aaa"),
    "delay and not_before": ({"delay": 1, "not_before": datetime.now(UTC)}, "not both"),
    "not_before without a zone": ({"not_before": datetime(2030, 1, 1)}, "time zone"),
    "not_before after all": ({"not_before": datetime.max.replace(tzinfo=UTC)}, "ten years"),
    "NaN": ({"temperature": float("nan")}, "temperature"),
    "Infinity in metadata": ({"metadata": {"a": [float("-inf")]}}, r"metadata\.a\[0\]"),
    "a number of 10,000 digits": ({"metadata": {"a": 10**10_000}}, "300 digits"),
    "what is no JSON": ({"metadata": {"price": Decimal(1)}}, "Decimal"),
    "metadata 20,000 levels deep": ({"metadata": {"a": nested(20_000)}}, "deeper"),
    "a temperature too high": ({"temperature": 5}, "temperature"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "an agent without a name": ({"agent_id": ""}, "agent_id"),
    "an agent with a long name": ({"agent_id": "x" * 201}, "agent_id"),
    "a task type that is none": ({"task_type": ["coder"]}, "task_type"),
    "a priority that does not exist": ({"priority": "urgent"}, "priority"),
    "an API that does not exist": ({"api_version": "telepathy"}, "api_version"),
    "a request_id that is none": ({"request_id": "x"}, "request_id"),
    "an empty key": ({"idempotency_key": ""}, "idempotency_key"),
    "a key with a NUL": ({"idempotency_key": "a\0"}, "NUL"),
    "a queue that does not exist": ({"reply_to": "no_such_queue"}, "no_such_queue"),
    "no name of a queue": ({"reply_to": "No Queue"}, "reply_to"),
    "tools that are none": ({"tools": {"a": 1}}, "tools"),
    "a workflow with a surrogate": ({"workflow": "\udfff"}, "surrogate"),
}


@pytest.mark.parametrize("case", MESSAGES)
async def test_messages(service, db, case):
    messages, words = MESSAGES[case]
    with pytest.raises(InvalidRequest, match=words) as raised:
        await service.call("simple", messages)
    assert len(str(raised.value)) < 1000
    assert await nothing_stored(db)


@pytest.mark.parametrize("case", OPTIONS)
async def test_options(service, db, case):
    options, words = OPTIONS[case]
    with pytest.raises(InvalidRequest, match=words) as raised:
        await service.enqueue("simple", "Hello", **options)
    assert len(str(raised.value)) < 1000
    assert await nothing_stored(db)


@pytest.mark.parametrize("first", ["", None, 5, ["simple"]])
async def test_neither_a_complexity_nor_a_model(service, db, first):
    with pytest.raises(InvalidRequest, match="first argument"):
        await service.call(first, "Hello")
    assert await nothing_stored(db)


@pytest.mark.parametrize("first", ["smple", "Simple", "medium ", "COMPLEX"])
async def test_a_complexity_written_wrong(service, db, first):
    with pytest.raises(InvalidRequest, match="did you mean complexity"):
        await service.call(first, "Hello")
    assert await nothing_stored(db)


async def test_many_with_a_model_that_is_a_complexity(service, db):
    with pytest.raises(InvalidRequest, match="is a complexity"):
        await service.enqueue_many([{"messages": "Hello", "model": "simple"}])
    assert await nothing_stored(db)


async def test_other_unknown_words_are_models(service):
    assert await service.enqueue("huge", "Hello")


@pytest.mark.parametrize(
    ("first", "options"),
    [
        ("gpt-3.5-turbo", {}),
        ("openai/gpt-3.5-turbo", {}),
        ("gpt-3.5-turbo", {"provider": "openai"}),
        ("simple", {"provider": "local"}),
        ("simple", {"model": "deepseek-v4-flash"}),
    ],
)
async def test_an_image_for_a_model_that_sees_none(service, db, first, options):
    with pytest.raises(InvalidRequest, match="image"):
        await service.call(first, user(IMAGE), **options)
    assert await nothing_stored(db)


async def test_an_image_where_no_model_that_could_serve_it_sees(database_url, db):
    async with running(database_url, local_model=True, providers={}) as service:
        for complexity in ("simple", "complex"):
            with pytest.raises(InvalidRequest, match="image"):
                await service.call(complexity, user(IMAGE))
    assert await nothing_stored(db)


async def test_an_image_for_a_model_that_sees_or_that_nobody_knows(service):
    for first in ("gpt-4o", "simple", "house/our-own"):
        assert await service.enqueue(first, user(IMAGE))


async def test_the_limit_is_a_setting(database_url):
    async with running(database_url, nexus=False, max_message_bytes=30_000_000) as service:
        assert await service.enqueue("simple", "x" * 20_000_000)


class TestMisuse:
    async def test_before_its_start_and_after_its_stop(self, database_url):
        settings = fast(database_url)
        db = await Database.open(database_url)
        service = LLMService(db, Listener(database_url, connect_timeout=5), Notifier(db), settings)
        await refused(service, "not running")
        await service.start()
        handle = await service.enqueue("simple", "Hello")
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
        await service.stop()
        await service.stop()
        await refused(service, "not running")
        with pytest.raises(ServiceMisused, match=str(handle.request_id)):
            await waiting
        await db.close()

    async def test_from_another_event_loop(self, service):
        await asyncio.to_thread(asyncio.run, refused(service, "another event loop"))
        assert (await service.enqueue("simple", "Hello")).created  # and is none the worse for it

    async def test_after_a_fork(self, service):
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=after_fork, args=(service, theirs))
        child.start()
        assert await asyncio.to_thread(ours.poll, 20)
        assert "fork" in ours.recv()
        child.join()
        assert (await service.enqueue("simple", "Hello")).created


def after_fork(service, pipe) -> None:
    async def use() -> str:
        try:
            await service.enqueue("simple", "Hello")
        except ServiceMisused as error:
            return str(error)
        return "nothing was said"

    asyncio.events._set_running_loop(None)
    pipe.send(asyncio.new_event_loop().run_until_complete(use()))


async def refused(service, words: str) -> None:
    handle = service.handle(uuid4())
    for use in (
        lambda: service.call("simple", "Hello"),
        lambda: service.enqueue("simple", "Hello"),
        lambda: service.enqueue_many([{"messages": "Hello"}]),
        handle.status,
        handle.result,
        handle.cancel,
        service.search,
        service.queue_metrics,
        service.get_available_models,
        lambda: service.retry(uuid4()),
    ):
        with pytest.raises(ServiceMisused, match=words):
            await use()


async def test_a_database_that_is_not_there_is_named_without_its_password():
    with pytest.raises(DatabaseUnavailable) as raised:
        async with started("postgresql://me:geheim@127.0.0.1:1/mine", connect_timeout=2.0):
            pass
    assert "127.0.0.1" in str(raised.value)
    assert "geheim" not in str(raised.value)


async def test_a_moment_just_within_ten_years(service):
    handle = await service.enqueue("simple", "Hello", not_before=datetime.now(UTC) + timedelta(days=3649))
    assert (await service.job_result(handle.request_id)).status == "scheduled"


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": 2**70}, "limit"),
        ({"status": "done"}, "status"),
        ({"status": []}, "status"),
        ({"since": "yesterday"}, "since"),
        ({"until": 5}, "until"),
        ({"agent_id": 5}, "agent_id"),
        ({"agent_id": "a\0"}, "NUL"),
        ({"colour": "blue"}, "no filter 'colour'"),
    ],
    ids=str,
)
async def test_filters(service, filters, words):
    with pytest.raises(InvalidRequest, match=words):
        await service.search(**filters)


async def test_a_queue_of_results_that_does_not_exist(database_url):
    with pytest.raises(InvalidSettings, match="reply_to 'nope' names no queue"):
        async with running(database_url, nexus=False, reply_to="nope"):
            pass
