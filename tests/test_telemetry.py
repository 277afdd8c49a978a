"""One trace from the caller's call through queue and worker to the provider and back, in a real database."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import pgnexus
from pgnexus import Flow, Prompt, telemetry
from pgnexus.errors import RequestFailed
from pgnexus.messages import REQUEST_QUEUES, new_request_id
from pgnexus.telemetry.queue import queue_of
from tests.provider_server import answer
from tests.system import fast, messages, put, running, until

ONE_ROUTE = {"simple": ["openai/gpt-4o", "groq/llama-3.3-70b"]}
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "the moon is made of cheese"


class Spans:
    """What was exported, by name."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        """The span of that name; a worker's ends after the caller has its answer."""

        async def there() -> list[ReadableSpan]:
            return self.named(name)

        [span] = await until(there)
        return span


@pytest.fixture
def spans():
    found = Spans()
    telemetry.set_tracer_provider(found.provider)
    yield found
    telemetry.set_tracer_provider(None)


def two_vendors(llmock: Any, **settings: Any) -> dict[str, Any]:
    """Settings in which openai and groq are both llmock."""
    row = {"base_url": llmock.base_url("openai"), "needs_key": False}
    return {"providers": {"openai": row, "groq": row}, "routes": ONE_ROUTE} | settings


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A vendor of our own making; its base URL."""
    app = web.Application()
    app.router.add_post("/v1/{api:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/v1"))


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def identity(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


class TestOneTrace:
    async def test_from_the_call_to_the_provider_and_back(self, spans, database_url, llmock):
        llmock.reply(SECRET)
        async with running(database_url, **two_vendors(llmock)) as llm:
            result = await llm.call("simple", SECRET, agent_id="poet", max_tokens=9, task_type="parser")
            process = await spans.one("process ai_requests")
        call, send, chat = (
            spans.named(name)[0] for name in ("call simple", "send ai_requests", "chat gpt-4o")
        )
        assert len(spans.all()) == 4
        assert {span.context.trace_id for span in spans.all()} == {call.context.trace_id}
        assert parent(call) is None
        assert [parent(send), parent(process), parent(chat)] == [
            identity(call), identity(send), identity(process)
        ]  # fmt: skip
        assert [call.kind, send.kind, process.kind, chat.kind] == [
            SpanKind.INTERNAL, SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.CLIENT
        ]  # fmt: skip
        assert dict(chat.attributes) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.request.max_tokens": 9,
            "gen_ai.agent.id": "poet",
            "gen_ai.response.model": result.model,
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": result.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": result.usage.completion_tokens,
            "server.address": "127.0.0.1",
            "server.port": int(llmock.base_url().split(":")[2].split("/")[0]),
            "pgnexus.provider": "openai",
            "pgnexus.request_id": str(result.request_id),
            "pgnexus.cost": float(result.cost),
        }
        assert send.attributes["messaging.destination.name"] == "ai_requests"
        assert process.attributes["messaging.message.id"] == str(result.request_id)
        for span in (call, process):  # and back: how it ended is told on both sides of the queue
            assert span.attributes["pgnexus.status"] == "success"
            assert span.attributes["pgnexus.cost"] == float(result.cost)
            assert span.attributes["pgnexus.attempts"] == 1
            assert span.attributes["pgnexus.tokens.prompt"] == result.usage.prompt_tokens
        assert [event.name for event in call.events] == ["pgnexus.result"]

    async def test_below_the_callers_own_span(self, spans, database_url, llmock):
        llmock.reply("Paris.")
        async with running(database_url, **two_vendors(llmock)) as llm:
            with spans.provider.get_tracer("shop").start_as_current_span("checkout") as checkout:
                handle = await llm.enqueue("simple", "Hello")
                await handle.result()
            process = await spans.one("process ai_requests")
        [send], [wait] = spans.named("send ai_requests"), spans.named("wait")
        assert parent(send) == parent(wait) == identity(checkout)
        assert parent(process) == identity(send)
        assert wait.attributes["pgnexus.status"] == "success"

    async def test_of_an_answer_that_was_given_before(self, spans, database_url, llmock):
        llmock.reply("Paris.")
        async with running(database_url, **two_vendors(llmock)) as llm:
            await llm.call("simple", "Hello", cache=60)
            spans.exporter.clear()
            assert (await llm.call("simple", "Hello", cache=60)).cached
            process = await spans.one("process ai_requests")
        [call] = spans.named("call simple")
        assert call.attributes["pgnexus.cached"] is process.attributes["pgnexus.cached"] is True
        assert len(spans.all()) == 3  # no call of its own

    async def test_of_a_stream(self, spans, database_url, llmock):
        llmock.reply("Paris, as it has been for long.")
        async with running(database_url, **two_vendors(llmock)) as llm:
            with spans.provider.get_tracer("shop").start_as_current_span("checkout") as checkout:
                async with llm.stream("simple", "Hello") as stream:
                    await stream.result()
            process = await spans.one("process ai_requests")
        [send], [wait], [chat] = map(spans.named, ("send ai_requests", "wait", "chat gpt-4o"))
        assert parent(send) == parent(wait) == identity(checkout)
        assert (parent(process), parent(chat)) == (identity(send), identity(process))
        assert chat.attributes["gen_ai.request.stream"] is True
        assert chat.attributes["gen_ai.response.time_to_first_chunk"] > 0
        assert wait.attributes["pgnexus.status"] == "success"

    async def test_a_traceparent_that_is_given_is_kept(self, spans, database_url, llmock):
        llmock.reply("Paris.")
        async with running(database_url, **two_vendors(llmock)) as llm:
            await llm.call("simple", "Hello", traceparent=GIVEN)
            process = await spans.one("process ai_requests")
        assert f"{process.context.trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
        assert parent(process) == 0xB7AD6B7169203331

    async def test_of_an_llm_step_that_says_whose_it_is(self, spans, database_url, llmock):
        llmock.reply("Paris.")
        flow = Flow("traced")

        @flow.llm
        def answer(input: str) -> Prompt:
            return Prompt(input, traceparent=GIVEN)

        settings = fast(database_url, **two_vendors(llmock))
        async with pgnexus.executor(flow, settings=settings, nexus=True) as executor:
            assert await executor.execute(flow, "Hello") == "Paris."
            process = await spans.one("process ai_requests")
        assert parent(process) == 0xB7AD6B7169203331

    async def test_a_retry_is_of_the_trace_of_who_asks_for_it(self, spans, database_url, llmock):
        llmock.reply("Paris.", times=None)
        async with running(database_url, **two_vendors(llmock)) as llm:
            first = await llm.call("simple", "Hello")
            with spans.provider.get_tracer("shop").start_as_current_span("again") as again:
                handle = await llm.retry(first.request_id)
            await handle.result()
            await until(lambda: asyncio.sleep(0, len(spans.named("process ai_requests")) == 2))
        before, after = spans.named("process ai_requests")
        assert before.context.trace_id != after.context.trace_id == again.get_span_context().trace_id

    async def test_of_a_foreign_message_without_one(self, spans, database_url, db, llmock):
        """It is a trace of its own, also where the worker was started below somebody's span."""
        llmock.reply("Paris.")
        with spans.provider.get_tracer("shop").start_as_current_span("start"):
            async with running(database_url, **two_vendors(llmock)):
                body = f'{{"request_id": "{new_request_id()}", "messages": [{{"role": "user", "content": "Hi"}}]}}'
                await put(db, "ai_requests", body)
                process = await spans.one("process ai_requests")
        assert parent(process) is None

    async def test_many_at_once_share_one_send(self, spans, database_url, db):
        async with running(database_url, nexus=False) as llm:
            await llm.enqueue_many([{"messages": "a"}, {"messages": "b"}], complexity="simple")
        [send] = spans.all()
        assert send.attributes["messaging.batch.message_count"] == 2
        stored = [message["traceparent"][:-3] for message in await messages(db, "ai_requests")]
        assert stored == [f"00-{send.context.trace_id:032x}-{send.context.span_id:016x}"] * 2

    async def test_what_is_not_sampled_says_so_to_the_worker(self, database_url, db):
        telemetry.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
        try:
            async with running(database_url, nexus=False) as llm:
                await llm.enqueue("simple", "Hello")
        finally:
            telemetry.set_tracer_provider(None)
        [message] = await messages(db, "ai_requests")
        assert int(message["traceparent"].rsplit("-", 1)[1], 16) & 1 == 0


class TestFailures:
    async def test_a_fallback_is_two_calls(self, spans, database_url, llmock):
        llmock.fail(503).reply("Paris.")
        async with running(database_url, **two_vendors(llmock)) as llm:
            result = await llm.call("simple", "Hello")
            process = await spans.one("process ai_requests")
        [first], [second] = spans.named("chat gpt-4o"), spans.named("chat llama-3.3-70b")
        assert parent(first) == parent(second) == identity(process)
        assert first.status.status_code is StatusCode.ERROR
        assert first.attributes["error.type"] == "provider_unavailable"
        assert first.attributes["http.response.status_code"] == 503
        assert second.status.status_code is StatusCode.UNSET
        assert second.attributes["pgnexus.fallback"] is True
        assert process.attributes["pgnexus.attempts"] == result.attempts == 2

    async def test_a_request_that_fails(self, spans, database_url, llmock):
        llmock.fail(400, times=None, message=f"cannot read {SECRET}")
        async with running(database_url, **two_vendors(llmock)) as llm:
            with pytest.raises(RequestFailed):
                await llm.call("simple", SECRET)
            process = await spans.one("process ai_requests")
        [call], [chat] = spans.named("call simple"), spans.named("chat gpt-4o")
        assert chat.attributes["error.type"] == process.attributes["error.type"] == "bad_request"
        assert call.attributes["pgnexus.status"] == "failed"
        for span in (call, process, chat):
            assert span.status.status_code is StatusCode.ERROR

    async def test_a_call_that_is_cancelled(self, spans, database_url, llmock):
        llmock.delay(30)
        async with running(database_url, **two_vendors(llmock)) as llm:
            handle = await llm.enqueue("simple", "Hello")
            under_way = telemetry.METERS.calls_in_flight
            await until(lambda: asyncio.sleep(0, under_way.value("openai", "gpt-4o")))
            await handle.cancel()
            chat = await spans.one("chat gpt-4o")
            process = await spans.one("process ai_requests")
        assert chat.attributes["error.type"] == "cancelled"
        assert process.attributes["pgnexus.status"] == "cancelled"

    async def test_no_prompt_and_no_answer_is_in_any_span(self, spans, database_url, llmock):
        llmock.fail(503, message=SECRET).reply(SECRET)
        async with running(database_url, **two_vendors(llmock)) as llm:
            await llm.call_with_system("simple", SECRET, SECRET, stop=["."])
            llmock.fail(400, message=SECRET)
            with pytest.raises(RequestFailed):
                await llm.call("simple", SECRET)
            await until(lambda: asyncio.sleep(0, len(spans.named("process ai_requests")) == 2))
        told = "".join(span.to_json() for span in spans.all())
        assert "gpt-4o" in told
        assert SECRET not in told

    async def test_no_header_of_ours_goes_to_the_vendor(self, spans, database_url):
        seen: list[web.Request] = []

        async def vendor(request: web.Request) -> web.Response:
            seen.append(request)
            return web.json_response(answer("Paris."))

        async with serving(vendor) as url, running(database_url, url) as llm:
            await llm.call("simple", "Hello")
        [request] = seen
        assert {name.lower() for name in request.headers} & {"traceparent", "tracestate", "baggage"} == set()


class TestWithoutAnybodyWhoWantsSpans:
    async def test_nothing_is_put_into_the_message(self, database_url, db):
        async with running(database_url, nexus=False) as llm:
            await llm.enqueue("simple", "Hello")
        [message] = await messages(db, "ai_requests")
        assert "traceparent" not in message

    def test_it_is_one_and_the_same_nothing(self):
        assert telemetry.call("simple", {}) is telemetry.call("medium", {})
        assert telemetry.send({}) is telemetry.provider_call("openai", "gpt-4o").span

    def test_without_opentelemetry_and_prometheus_everything_else_works(self):
        """As after an installation without the extra; in a process of its own."""
        program = """
import sys
sys.modules["opentelemetry"] = sys.modules["prometheus_client"] = None
import pgnexus
import pgnexus
from pgnexus import Flow, Prompt, telemetry
from pgnexus.errors import InvalidSettings
from pgnexus.telemetry.prometheus import registry
with telemetry.call("simple", {}), telemetry.send({}), telemetry.provider_call("a", "b") as call:
    call.first_token()
    call.ended("success")
assert telemetry.METERS.calls.value("a", "b", "success") == 1
try:
    registry()
except InvalidSettings as error:
    print(error)
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ,
            check=True,
        )
        assert 'pip install "pgnexus[telemetry]"' in done.stdout


def test_the_lanes_are_those_of_the_wire() -> None:
    assert {priority: queue_of(priority) for priority in REQUEST_QUEUES} == REQUEST_QUEUES
