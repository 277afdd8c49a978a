"""Our own connections: what HTTP/1.1 allows is understood however it is cut, and what is none of it is refused."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict
from provider_server import KEY, answer, replies

from pgnexus.errors import BadAnswer, ProviderUnavailable
from pgnexus.providers.connections import Connections, Origin
from pgnexus.providers.http import HttpClient, Target
from pgnexus.providers.http11 import Connection
from pgnexus.providers.http_exchange import CutShort, Exchange

HEAD = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n"
CHUNKED = (
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nX-One:  a b \r\nx-one: c\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n \r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Vendor:
    """A server that does what a script says, once for each request of a connection."""

    origin: Origin
    connections: Connections
    opened: list[asyncio.StreamWriter] = field(default_factory=list)

    async def post(self, body: bytes = b"{}", seconds: float = 10) -> Exchange:
        head = HEAD.replace(b": 2", b": %d" % len(body))
        return await self.connections.post(self.origin, head, body, seconds)

    async def body(self) -> bytes:
        return await everything(await self.post())


async def everything(exchange: Exchange) -> bytes:
    pieces = []
    while piece := await exchange.readany():
        pieces.append(piece)
    assert exchange.at_eof()
    return b"".join(pieces)


@asynccontextmanager
async def vendor(script: Script) -> AsyncIterator[Vendor]:
    found: Vendor

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.opened.append(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    found = Vendor(Origin(host, port, False), Connections())
    yield found
    found.connections.close()
    server.close()
    for writer in found.opened:
        writer.transport.abort()
    await asyncio.sleep(0)


def says(*pieces: bytes, hangs_up: bool = False) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if hangs_up:
            writer.close()

    return script


class Wire(asyncio.Transport):
    """A transport that nothing goes through."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...
    def resume_reading(self) -> None: ...
    def pause_reading(self) -> None: ...


async def parsed(raw: bytes, places: list[int]) -> tuple[Exchange, bytes, list[Connection]]:
    """What a connection makes of bytes that come cut at these places."""
    free: list[Connection] = []
    connection = Connection(free.append, lambda _: None)
    connection.connection_made(Wire())
    asked = asyncio.create_task(connection.post(HEAD, b"{}", asyncio.get_running_loop().time() + 60))
    await asyncio.sleep(0)
    ends = sorted({place % (len(raw) + 1) for place in places})
    for start, end in zip([0, *ends], [*ends, len(raw)], strict=True):
        if start < end:
            connection.data_received(raw[start:end])
    exchange = await asked
    return exchange, await everything(exchange), free


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(0, 1000), max_size=30))
def test_chunks_wherever_they_are_cut(places: list[int]) -> None:
    async def run() -> None:
        exchange, body, free = await parsed(CHUNKED, places)
        assert (exchange.status, body) == (200, b"hello 0123456789")
        assert exchange.headers.getall("X-One") == ["a b", "c"]
        assert len(free) == 1

    asyncio.run(run())


class TestBodies:
    async def test_of_a_length_and_of_none_and_chunked_on_one_connection(self):
        answers = iter([b"Content-Length: 5\r\n\r\nhello", b"Content-Length: 0\r\n\r\n"])

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await says(b"HTTP/1.1 200 OK\r\n" + next(answers) if len(got) < 2 else CHUNKED)(reader, writer)

        got: list[bytes] = []
        async with vendor(script) as server:
            for _ in range(3):
                got.append(await server.body())
            assert got == [b"hello", b"", b"hello 0123456789"]
            assert len(server.opened) == 1

    @pytest.mark.parametrize(
        "raw",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more than was said",
        ],
    )
    async def test_after_which_the_connection_is_not_used_again(self, raw):
        async with vendor(says(raw)) as server:
            assert [await server.body(), await server.body()] == [b"hello", b"hello"]
            assert len(server.opened) == 2

    async def test_that_ends_with_the_connection(self):
        async with vendor(says(b"HTTP/1.1 200\r\n\r\nhel", b"lo", hangs_up=True)) as server:
            assert await server.body() == b"hello"

    async def test_packed_though_nobody_asked(self):
        raw = gzip.compress(b"hello" * 1000)
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(raw)
        async with vendor(says(head, raw)) as server:
            assert await server.body() == b"hello" * 1000

    async def test_a_bomb(self):
        raw = gzip.compress(b"\0" * 40_000_000)
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(raw)
        async with vendor(says(head, raw)) as server:
            with pytest.raises(ValueError, match="too much"):
                await server.body()

    async def test_large_ones_in_both_directions_wait_for_the_slower_side(self):
        large, sent = b"x" * 32_000_000, 0

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            assert await reader.readexactly(len(large)) == large
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large))
            for start in range(0, len(large), 100_000):
                writer.write(large[start : start + 100_000])
                await writer.drain()
                sent = start

        async with vendor(script) as server:
            exchange = await server.post(large)
            first = await exchange.readany()
            await asyncio.sleep(0.3)  # nobody reads
            assert sent < len(large) - 10_000_000
            assert first + await everything(exchange) == large

    async def test_an_answer_before_the_body_was_sent(self):
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await asyncio.Event().wait()

        async with vendor(script) as server:
            exchange = await server.post(b"x" * 30_000_000)
            assert exchange.status == 413


class TestRefused:
    @pytest.mark.parametrize(
        "raw",
        [
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
            b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000,
            b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 5\r\n\r\nhello",
        ],
        ids=lambda raw: str(raw)[:70],
    )
    async def test_what_is_not_http(self, raw):
        async with vendor(says(raw)) as server:
            with pytest.raises(ValueError, match=r"not HTTP/1\.1"):
                await server.body()

    @pytest.mark.parametrize(
        ("raw", "error"),
        [
            (b"", ConnectionResetError),
            (b"HTTP/1.1 200", CutShort),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", CutShort),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", CutShort),
        ],
    )
    async def test_what_breaks_off(self, raw, error):
        async with vendor(says(raw, hangs_up=True)) as server:
            with pytest.raises(error):
                await server.body()

    async def test_what_does_not_come_in_time(self):
        async with vendor(says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell")) as server:
            exchange = await server.post(seconds=0.2)
            assert await exchange.readany() == b"hell"
            with pytest.raises(TimeoutError):
                await exchange.readany()


class TestConnections:
    async def test_one_that_was_closed_meanwhile_is_not_used(self):
        async with vendor(says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")) as server:
            assert await server.body() == b"hello"
            server.opened[0].close()
            await server.opened[0].wait_closed()
            await asyncio.sleep(0.05)  # until the news has come
            assert await server.body() == b"hello"
            assert len(server.opened) == 2

    async def test_one_that_speaks_unasked_is_not_used(self):
        async with vendor(says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")) as server:
            assert await server.body() == b"hello"
            server.opened[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
            await server.opened[0].drain()
            await asyncio.sleep(0.05)
            assert await server.body() == b"hello"
            assert len(server.opened) == 2

    async def test_leaving_after_the_end_does_not_disturb_the_next(self):
        async with vendor(says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")) as server:
            first = await server.post()
            assert await everything(first) == b"hello"
            second = await server.post()
            first.close()
            assert await everything(second) == b"hello"
            assert len(server.opened) == 1

    async def test_nobody_there(self):
        with pytest.raises(OSError, match="9"):
            await Connections().post(Origin("127.0.0.1", 9, False), HEAD, b"{}", 5)


class TestTargets:
    @pytest.mark.parametrize(
        ("url", "host", "path", "origin"),
        [
            ("https://api.test/v1/x", "api.test", "/v1/x", Origin("api.test", 443, True)),
            ("http://api.test:80/v1", "api.test", "/v1", Origin("api.test", 80, False)),
            ("http://api.test:81/v1?a=b", "api.test:81", "/v1?a=b", Origin("api.test", 81, False)),
            ("http://[::1]:81/v1", "[::1]:81", "/v1", Origin("::1", 81, False)),
            ("https://[::1]/v1", "[::1]", "/v1", Origin("::1", 443, True)),
        ],
    )
    def test_what_is_said_to_whom(self, url, host, path, origin):
        target = Target.of(url, {"Authorization": f"Bearer {KEY}"})
        assert target.head.startswith(f"POST {path} HTTP/1.1\r\nHost: {host}\r\n".encode())
        assert f"Authorization: Bearer {KEY}\r\n".encode() in target.head
        assert target.origin == origin
        assert KEY not in repr(target)

    async def test_through_a_proxy(self, wire, ask, monkeypatch):
        seen: list[str] = []

        async def handler(request: web.Request) -> web.Response:
            seen.append(f"{request.raw_path} {request.headers['Host']}")
            return web.json_response(answer("Hello"))

        proxy = await started(handler, monkeypatch)
        got = await wire("http://vendor.test/v1").complete(ask(), "gpt-4o", timeout=10)
        assert got.text == "Hello"
        assert seen == ["http://vendor.test/v1/chat/completions vendor.test"]
        await proxy.cleanup()

    @pytest.mark.parametrize("cut", [True, False])
    async def test_what_goes_wrong_behind_a_proxy_has_the_same_names(self, cut, wire, ask, monkeypatch):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "5000"})
            if cut:
                await response.prepare(request)
                await response.write(b"{")
            assert request.transport is not None
            request.transport.close()
            return response

        proxy = await started(handler, monkeypatch)
        with pytest.raises(BadAnswer if cut else ProviderUnavailable):
            await wire("http://vendor.test/v1").complete(ask(), "gpt-4o", timeout=10)
        await proxy.cleanup()

    async def test_credentials_in_a_url_are_left_to_aiohttp(self):
        client = HttpClient()
        runner = await started(replies(b"{}"))
        host, port = runner.addresses[0][:2]
        target = Target.of(f"http://user:word@{host}:{port}/v1/x", {"Content-Type": "application/json"})
        exchange = await client.post(self, target, b"{}", 10)
        assert (exchange.status, await exchange.readany()) == (200, b"{}")
        assert isinstance(target.headers, CIMultiDict)
        await client.release(self)
        await runner.cleanup()


async def started(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> web.AppRunner:
    """A server for everything; with ``monkeypatch`` it is the proxy of this process."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    if monkeypatch is not None:
        host, port = runner.addresses[0][:2]
        monkeypatch.setenv("http_proxy", f"http://{host}:{port}")
    return runner
