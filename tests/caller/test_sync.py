"""The synchronous face: the same methods, blocking, from any thread."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgnexus.app import open_sync
from pgnexus.caller.sync import SyncLLMService
from pgnexus.errors import InvalidRequest, RequestCancelled, ResultPending, ServiceMisused
from pgnexus.messages import LLMRequest
from pgnexus.testing import FakeLLM
from tests.system import fast


@pytest.fixture
def llm(database_url: str, llmock: Any) -> Iterator[SyncLLMService]:
    with open_sync(fast(database_url, llmock.base_url("openai")), nexus=True) as service:
        yield service


def test_a_call_blocks_until_the_answer(llm: SyncLLMService, llmock: Any) -> None:
    llmock.reply("Paris")
    assert llm.call("simple", "What is the capital of France?").text == "Paris"
    assert llm.determine_complexity_for_task("architect") == "complex"


def test_handles_block_too(llm: SyncLLMService, llmock: Any) -> None:
    llmock.delay(30, times=None)
    handle = llm.enqueue("simple", "Hello")
    with pytest.raises(ResultPending):
        handle.result(timeout=0.05)
    assert handle.status() == "enqueued"
    assert handle.cancel() is True
    with pytest.raises(RequestCancelled):
        handle.result(timeout=10)
    assert llm.handle(handle.request_id).status() == "cancelled"


def test_many_threads_share_it(llm: SyncLLMService) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(llm.call("simple", "Hello").status)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["success"] * 8


def test_it_joins_a_transaction(llm: SyncLLMService, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        handle = llm.enqueue("simple", "Hello", connection=connection)
        assert llm.search() == []
        connection.commit()
    assert handle.result(timeout=10).ok


def test_many_at_once(llm: SyncLLMService) -> None:
    handles = llm.enqueue_many([{"messages": f"question {number}"} for number in range(3)])
    assert [handle.result(timeout=10).status for handle in handles] == ["success"] * 3


def test_errors_are_those_of_the_asynchronous_face(llm: SyncLLMService) -> None:
    with pytest.raises(InvalidRequest, match="temprature"):
        llm.call("simple", "Hello", temprature=1)


def test_outside_its_block_it_says_so(database_url: str) -> None:
    service = open_sync(fast(database_url), nexus=False)
    with pytest.raises(ServiceMisused, match="`with` block"):
        service.call("simple", "Hello")
    with service:
        assert service.search() == []
    with pytest.raises(ServiceMisused):
        service.search()
    with pytest.raises(ServiceMisused, match="opened before"), service:
        pass


def test_in_its_own_thread_it_does_not_wait_for_itself(database_url: str) -> None:
    def asks_back(request: LLMRequest) -> str:
        try:
            return str(llm.search())
        except ServiceMisused as error:
            return str(error)

    with open_sync(fast(database_url), nexus=True, providers=FakeLLM(asks_back)) as llm:
        assert "in its own thread" in llm.call("simple", "Hello").text


def test_its_methods_are_seen(llm: SyncLLMService) -> None:
    assert {"call", "enqueue", "search", "retry"} <= set(dir(llm))


class TestStreams:
    def test_a_stream_is_an_iterator(self, llm: SyncLLMService, llmock: Any) -> None:
        llmock.reply("One two three.")
        stream = llm.stream("simple", "Hello")
        chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == "One two three." == stream.result().text
        assert list(llm.resume(stream.request_id, after=chunks[-1].number)) == []

    def test_leaving_its_block_cancels(self, llm: SyncLLMService, llmock: Any) -> None:
        llmock.delay(30, times=None)
        with llm.stream("simple", "Hello") as stream:
            assert llm.handle(stream.request_id).status() == "enqueued"
        assert llm.handle(stream.request_id).status() == "cancelled"

    def test_one_that_is_dropped_cancels(self, llm: SyncLLMService, llmock: Any) -> None:
        llmock.delay(30, times=None)
        stream = llm.stream("simple", "Hello")
        stream.__enter__()
        handle = llm.handle(stream.request_id)
        del stream
        with pytest.raises(RequestCancelled):
            handle.result(timeout=10)


def test_a_handle_outlives_its_service_and_says_so(database_url: str) -> None:
    with open_sync(fast(database_url), nexus=False) as service:
        handle = service.enqueue("simple", "Hello")
    with pytest.raises(ServiceMisused, match="closed"):
        handle.status()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, where there are threads
def test_after_a_fork_it_says_so_and_does_its_parent_no_harm(llm: SyncLLMService) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=after_fork, args=(llm, theirs))
    child.start()
    assert ours.poll(20)
    assert "fork" in ours.recv()
    child.join()
    assert llm.call("simple", "Hello").ok


def after_fork(llm: SyncLLMService, pipe: Any) -> None:
    words = "nothing was said"
    try:
        llm.call("simple", "Hello")
    except ServiceMisused as error:
        words = str(error)
    llm.__exit__(None, None, None)
    pipe.send(words)
