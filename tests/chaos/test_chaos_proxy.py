"""The proxy between a process and its database: bytes stop, break, come late, or one way only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from chaos.proxy import Proxy
from chaos.server import HOST

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that says back what it hears, and knows how its connections ended."""

    def __init__(self) -> None:
        self.heard = b""
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                self.heard += data
                writer.write(data)
            self.ends.put_nowait("end")
        except ConnectionResetError:
            self.ends.put_nowait("reset")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Proxy, Echo]]:
    """A proxy before an echo."""
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.start()
    yield proxy, echo
    await proxy.close()
    server.close()


async def said(ends: Ends, text: bytes) -> bytes:
    reader, writer = ends
    writer.write(text)
    return await reader.readexactly(len(text))


async def test_bytes_go_both_ways(echo: tuple[Proxy, Echo]) -> None:
    proxy, server = echo
    ends = await asyncio.open_connection(HOST, proxy.port)
    assert await said(ends, b"x" * 300_000) == b"x" * 300_000
    ends[1].close()
    assert await server.ends.get() == "end"


async def test_while_it_hangs_nothing_passes_and_nothing_is_lost(echo: tuple[Proxy, Echo]) -> None:
    proxy, _ = echo
    old = await asyncio.open_connection(HOST, proxy.port)
    await said(old, b"before")
    start = asyncio.get_running_loop().time()
    proxy.hang(0.4)
    new = await asyncio.open_connection(HOST, proxy.port)
    answers = asyncio.gather(said(old, b"old"), said(new, b"new"))
    assert tuple(await answers) == (b"old", b"new")
    assert asyncio.get_running_loop().time() - start >= 0.4
    old[1].close()
    new[1].close()


async def test_reset_is_felt_on_both_sides(echo: tuple[Proxy, Echo]) -> None:
    proxy, server = echo
    ends = await asyncio.open_connection(HOST, proxy.port)
    await said(ends, b"hello")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await ends[0].read()
    assert await server.ends.get() == "reset"
    again = await asyncio.open_connection(HOST, proxy.port)
    assert await said(again, b"hello") == b"hello"
    again[1].close()


async def test_delayed_both_ways(echo: tuple[Proxy, Echo]) -> None:
    proxy, _ = echo
    ends = await asyncio.open_connection(HOST, proxy.port)
    start = asyncio.get_running_loop().time()
    proxy.delay(0.1, 10)
    await said(ends, b"hello")
    assert asyncio.get_running_loop().time() - start >= 0.2
    ends[1].close()


async def test_mute_what_is_sent_arrives_and_no_answer_comes(echo: tuple[Proxy, Echo]) -> None:
    proxy, server = echo
    ends = await asyncio.open_connection(HOST, proxy.port)
    await said(ends, b"one ")
    proxy.mute(0.2)
    ends[1].write(b"two")
    with pytest.raises(ConnectionResetError):
        await ends[0].read()
    assert (server.heard, await server.ends.get()) == (b"one two", "reset")


async def test_who_is_not_there_is_not_there(echo: tuple[Proxy, Echo]) -> None:
    with socket.create_server((HOST, 0)) as gone:
        port = gone.getsockname()[1]
    proxy = Proxy(port)
    await proxy.start()
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    assert await reader.read() == b""
    writer.close()
    await proxy.close()
