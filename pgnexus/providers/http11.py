"""Nexus side, under our own wires: one connection that speaks HTTP/1.1, one exchange at a time.

What a POST to a vendor needs and nothing more, so that it costs a third of what aiohttp's client takes for it. Anything
that is not plain HTTP/1.1 is refused, never guessed at: a connection that said something odd is not used again.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from typing import Final

from multidict import CIMultiDict

from pgnexus.providers.http_exchange import CutShort, Exchange

_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [^\r\n]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LONGEST_HEAD: Final = 64 * 1024
_LONGEST_LINE: Final = 4096
_SLICE: Final = 256 * 1024  # bytes of a large body written at a time, so that others have their turn
_MOST_UNPACKED: Final = 16 * 1024 * 1024  # bytes that one piece may become

# What is to come next on a connection.
_NOTHING, _HEAD, _BODY, _UNTIL_CLOSE, _CHUNK_SIZE, _CHUNK, _CHUNK_END, _TRAILERS = range(8)


class Connection(asyncio.Protocol):
    """One connection; ``free`` is told when it can be used again, ``gone`` when it is lost."""

    def __init__(self, free: Callable[[Connection], None], gone: Callable[[Connection], None]) -> None:
        self._free = free
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next = _NOTHING
        self._rest = b""
        self._left = 0  # bytes of the body, or of its chunk, that are to come
        self._lasts = True
        self._unpacker: zlib._Decompress | None = None
        self._writable: asyncio.Event | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def post(self, head: bytes, body: bytes, deadline: float) -> Exchange:
        """Send a request and wait for the beginning of its answer; all of it has to be there by ``deadline``.

        ``deadline`` is by the loop's clock, ``head`` ends with its blank line.
        """
        assert self._transport is not None
        exchange = self._exchange = Exchange(self)
        self._next, self._lasts, self._unpacker = _HEAD, True, None
        self._timer = asyncio.get_running_loop().call_at(deadline, self._late)
        try:
            if len(body) <= _SLICE:
                self._transport.write(head + body)
            else:
                await self._write(head, body, exchange)
            await exchange.begun()
        except BaseException:
            self.abort()
            raise
        return exchange

    async def _write(self, head: bytes, body: bytes, exchange: Exchange) -> None:
        """A large body, as fast as it is taken; an answer that comes meanwhile ends it."""
        assert self._transport is not None
        self._transport.write(head)
        for start in range(0, len(body), _SLICE):
            if exchange.status or not self.is_open:
                self._lasts = False  # what is left of the body will not come
                return
            self._transport.write(body[start : start + _SLICE])
            if self._writable is not None:
                await self._writable.wait()
            else:
                await asyncio.sleep(0)

    def resume(self) -> None:
        if self._transport is not None and self.is_open:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def _late(self) -> None:
        self._fail(TimeoutError())

    def _fail(self, error: Exception) -> None:
        if self._exchange is not None:
            self._exchange.fail(error)
        self.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # nobody asked
            self.abort()
            return
        data, self._rest = self._rest + data if self._rest else data, b""
        try:
            self._read(data)
        except (ValueError, zlib.error) as error:
            self._fail(ValueError(f"not HTTP/1.1: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.resume_writing()
        exchange = self._exchange
        if exchange is not None:
            if self._next == _UNTIL_CLOSE and error is None:
                self._end()
            elif exchange.status or self._rest:
                exchange.fail(CutShort(str(error) if error else "the connection was closed"))
            else:
                exchange.fail(ConnectionResetError("the connection was closed without an answer"))
        self._exchange = None
        self._stop_timer()
        self._gone(self)

    # the answer

    def _read(self, data: bytes) -> None:
        while data and self._exchange is not None:
            if self._next == _HEAD:
                head, blank, data = data.partition(b"\r\n\r\n")
                if not self._complete(head, blank, _LONGEST_HEAD):
                    return
                self._begin(head)
            elif self._next in (_BODY, _CHUNK):
                piece, data = (
                    (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
                )
                self._left -= len(piece)
                self._keep(piece)
                if self._left == 0 and self._next == _BODY:
                    self._end()
                elif self._left == 0:
                    self._next = _CHUNK_END
            elif self._next == _UNTIL_CLOSE:
                self._keep(data)
                return
            else:
                line, end, data = data.partition(b"\r\n")
                if not self._complete(line, end, _LONGEST_LINE):
                    return
                self._line(line)
        if data:  # more than was asked for
            self.abort()

    def _complete(self, part: bytes, end: bytes, longest: int) -> bool:
        """Whether a part has its end; else it is put aside."""
        if len(part) > longest:
            raise ValueError("a line or a head that is too long")
        if not end:
            self._rest = part
        return bool(end)

    def _line(self, line: bytes) -> None:
        """A line between the chunks of a body."""
        if self._next == _CHUNK_SIZE:
            size = line.partition(b";")[0].strip()
            if not _SIZE.fullmatch(size):
                raise ValueError("a chunk without a size")
            self._left = int(size, 16)
            self._next = _CHUNK if self._left else _TRAILERS
        elif self._next == _CHUNK_END:
            if line:
                raise ValueError("a chunk longer than its size")
            self._next = _CHUNK_SIZE
        elif not line:  # the trailers' end; what they say is of no use here
            self._end()

    def _begin(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        found = _STATUS.fullmatch(first)
        if found is None:
            raise ValueError("no status line")
        status = int(found[2])
        if status == 101:
            raise ValueError("another protocol")
        if status < 200:  # not the answer yet
            return
        headers: CIMultiDict[str] = CIMultiDict()
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not _NAME.fullmatch(name):
                raise ValueError("a header without a name")
            headers.add(name.decode(), value.strip(b" \t").decode("latin-1"))
        self._frame(status, headers, found[1] == b"1")
        assert self._exchange is not None
        self._exchange.headers, self._exchange.status = headers, status
        if self._next == _BODY and self._left == 0:
            self._end()
        elif self._exchange is not None:
            self._exchange.wake()

    def _frame(self, status: int, headers: CIMultiDict[str], is_1_1: bool) -> None:
        """Where the body ends, and what it is packed in."""
        connection = ",".join(headers.getall("Connection", ())).lower()
        self._lasts = self._lasts and is_1_1 and "close" not in connection
        lengths = set(headers.getall("Content-Length", ()))
        coding = headers.get("Transfer-Encoding")
        if status in (204, 304):
            self._next, self._left = _BODY, 0
        elif coding is not None:
            if coding.lower() != "chunked" or lengths:
                raise ValueError("a body of two lengths")
            self._next = _CHUNK_SIZE
        elif lengths:
            [length, *others] = lengths
            if others or not (length.isascii() and length.isdigit() and len(length) < 16):
                raise ValueError("a Content-Length that is none")
            self._next, self._left = _BODY, int(length)
        else:
            self._next, self._lasts = _UNTIL_CLOSE, False
        if headers.get("Content-Encoding", "identity").lower() != "identity":  # though we said we take none
            self._unpacker = zlib.decompressobj(wbits=47)

    def _keep(self, piece: bytes) -> None:
        assert self._exchange is not None
        assert self._transport is not None
        if self._unpacker is not None:
            piece = self._unpacker.decompress(piece, _MOST_UNPACKED)
            if self._unpacker.unconsumed_tail:
                raise ValueError("a body that unpacks to too much")
        if piece:
            if self._exchange.keep(piece):
                self._transport.pause_reading()
            self._exchange.wake()

    def _end(self) -> None:
        exchange, self._exchange, self._next = self._exchange, None, _NOTHING
        self._stop_timer()
        assert exchange is not None
        exchange.ended = True
        exchange.wake()
        if self._lasts and self.is_open:
            self.resume()
            self._free(self)
        else:
            self.abort()
