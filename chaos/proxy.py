"""Between a process and its database: a TCP proxy that hangs, resets, delays, and loses answers."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

from chaos.server import HOST

_CHUNK = 2**16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST and forgets what is unsent


class Proxy:
    """Passes connections to ``port`` on to the server at ``upstream``; lives in one event loop.

    A ``host`` that is a folder is that of PostgreSQL's Unix socket. Whoever blocks that loop holds up the bytes, too.
    """

    def __init__(self, upstream: int, host: str = HOST) -> None:
        self._host, self._upstream = host, upstream
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._hung_until = self._mute_until = self._slow_until = 0.0  # by the loop's clock
        self._delay = 0.0

    async def start(self) -> None:
        """Listen on a free port."""
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, HOST, 0)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def hang(self, seconds: float) -> None:
        """From now on, for so long, no byte passes, either way; all connections stay open, new ones too."""
        self._hung_until = max(self._hung_until, self._loop.time() + seconds)

    def delay(self, seconds: float, for_seconds: float) -> None:
        """For ``for_seconds`` every piece of data arrives ``seconds`` late, either way."""
        self._delay, self._slow_until = seconds, self._loop.time() + for_seconds

    def mute(self, seconds: float) -> None:
        """For so long what clients send arrives, but no answer comes back; then all are reset.

        So a client does not learn whether its last transaction was committed. It was.
        """
        self._mute_until = self._loop.time() + seconds
        self._loop.call_at(self._mute_until, self.reset)

    def reset(self) -> None:
        """Cut all connections at once, on both sides, with RST."""
        for writer in self._open:
            if (wire := writer.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def close(self) -> None:
        """Reset all, and listen no more."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._late()
            await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):  # refused, cut, or closed: all in a day's work
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._host.startswith("/"):
            there, back = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._upstream}")
        else:
            there, back = await asyncio.open_connection(self._host, self._upstream)
        self._open.add(back)
        ways = {
            asyncio.create_task(self._pump(reader, back, answers=False)),
            asyncio.create_task(self._pump(there, writer, answers=True)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            self._open.discard(back)
            back.close()  # sends what is left first, as Terminate
            writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._late()
                if answers and self._loop.time() < self._mute_until:
                    continue
                target.write(data)
                await target.drain()
            await self._late()  # a hung wire tells of no end, either

    async def _late(self) -> None:
        if self._loop.time() < self._slow_until:
            await asyncio.sleep(self._delay)
        while (left := self._hung_until - self._loop.time()) > 0:  # noqa: ASYNC110 - it may have grown meanwhile
            await asyncio.sleep(left)
