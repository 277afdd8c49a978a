"""A vendor whose answers are bytes of our choosing: HTTP itself may be broken, or lie."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.fuzz.hostile import INJECTIONS, Hostile, _text
from tests.provider_server import answer

_BOMB = 200_000_000
_EVENTS = (
    b"data: [DONE]",
    b"data: {",
    b"data: null",
    b"data: []",
    b'data: {"choices": []}',
    b'data: {"choices": [{"delta": {"content": "x"}}]}',
    b'data: {"choices": [{"index": -1, "delta": {"tool_calls": [{"index": 1e9}]}}]}',
    b'data: {"type": "response.output_text.delta", "delta": 5}',
    b'data: {"type": "response.completed", "response": {}}',
    b"event: error",
    b"id: \xff\xfe",
    b"retry: -1",
    b": comment",
    b"\x00\x01\x02",
    b"data",
    b"data: \xed\xa0\x80",
)


def head(status: str = "200 OK", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def whole(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    given = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
    return head(status, **(given | headers)) + body


def bomb(coding: str) -> bytes:
    """A small body that is a large one: blanks, which JSON allows."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    pieces = [packer.compress(b" " * 1_000_000) for _ in range(_BOMB // 1_000_000)]
    return whole(b"".join([*pieces, packer.flush()]), Content_Encoding=coding)


FIXED: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP 0.9": b"hello\n",
    "an unknown version": b"HTTP/9.9 200 OK\r\n\r\n{}",
    "a status that is none": whole(b"{}", status="abc OK"),
    "a status of four digits": whole(b"{}", status="2000 OK"),
    "a status of 1xx for ever": head("100 Continue") * 2000,
    "a header without an end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000,
    "many headers": head(**{f"X{i}": "y" for i in range(20_000)}) + b"{}",
    "headers injected": b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\nX\r\n\r\n{}",
    "a header of no UTF-8": b"HTTP/1.1 500 x\r\nX-Request-Id: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    "Retry-After of nonsense": whole(b"{}", "429 x", Retry_After="1e400", retry_after_ms="-NaN"),
    "a length too long": whole(b"{}", Content_Length=1000),
    "a length too short": whole(json.dumps(answer()).encode(), Content_Length=10),
    "a length below nothing": whole(b"{}", Content_Length=-1),
    "a length that is none": whole(b"{}", Content_Length="1e3"),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\n{}{}",
    "length and chunks": head(Content_Length=2, Transfer_Encoding="chunked") + b"2\r\n{}\r\n0\r\n\r\n",
    "a chunk of no size": head(Transfer_Encoding="chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk of a huge size": head(Transfer_Encoding="chunked") + b"ffffffffffffffffffff\r\n{}",
    "a chunk below nothing": head(Transfer_Encoding="chunked") + b"-2\r\n{}\r\n0\r\n\r\n",
    "chunks without an end": head(Transfer_Encoding="chunked") + b"2\r\n{}\r\n",
    "a redirect to a file": whole(b"", "302 Found", Location="file:///etc/passwd"),
    "a redirect to itself": whole(b"", "307 x", Location="/v1/chat/completions"),
    "a redirect to nowhere": whole(b"", "301 x", Location="http://\x00:-1/"),
    "no gzip": whole(b"{}", Content_Encoding="gzip"),
    "half a gzip": whole(gzip.compress(json.dumps(answer()).encode())[:-15], Content_Encoding="gzip"),
    "an unknown coding": whole(b"{}", Content_Encoding="rot13"),
    "no UTF-8": whole(b'{"choices": "\xff\xfe"}'),
    "an unknown charset": whole(b"<html>", "502 x", Content_Type="text/html; charset=klingon"),
    "deep": whole(b"[" * 200_000),
    "a long number": whole(b'{"choices": ' + b"9" * 100_000 + b"}"),
    "duplicate keys": whole(b'{"choices": [], "choices": 5, "choices": {"a": 1, "a": 2}}'),
    "20 MB": whole(b'"' + b"x" * 20_000_000 + b'"'),
    "20 MB of an error": whole(b'{"error": "' + b"x" * 20_000_000 + b'"}', "400 x"),
    "20 MB of one event": whole(b"data: " + b"x" * 20_000_000, Content_Type="text/event-stream"),
    "20 MB without a line": whole(b"x" * 20_000_000, Content_Type="text/event-stream"),
}


def drawn(seed: int) -> bytes:
    """A whole answer with rubbish in its fields, an error, or a stream of nonsense."""
    hostile = Hostile(seed)
    rng: random.Random = hostile.random
    if rng.random() < 0.4:
        events = [rng.choice(_EVENTS) for _ in range(rng.randrange(12))]
        ends = [rng.choice((b"\n", b"\n\n", b"\r\n\r\n", b"\r", b"")) for _ in events]
        body = b"".join(event + end for event, end in zip(events, ends, strict=True))
        return whole(body, Content_Type=rng.choice(("text/event-stream", "text/plain", "\x00")))
    body = _text(_rubbish(hostile)).encode()
    return whole(body, rng.choice(("200 OK", "200 OK", "400 x", "429 x", "500 x", "529 x", "204 x", "999 x")))


def _rubbish(hostile: Hostile) -> Any:
    rng = hostile.random
    names = ("content", "tool_calls", "refusal", "role", "reasoning", "name", *INJECTIONS[:4])
    message = {rng.choice(names): hostile.value() for _ in range(4)}
    chat = answer(hostile.value(), message=message, finish_reason=hostile.value())
    item = {
        "type": rng.choice(("message", "function_call", "reasoning", 5)),
        "content": hostile.value(),
        "call_id": hostile.value(),
    }
    responses = {"status": rng.choice(("completed", "incomplete", 5)), "output": [item, hostile.value()]}
    made = rng.choice((chat, responses, {"error": hostile.value()}, hostile.value()))
    if isinstance(made, dict) and rng.random() < 0.5:
        made["usage"] = hostile.value()
        made["model"] = hostile.value()
    return made


@asynccontextmanager
async def rubbish(body: bytes) -> AsyncIterator[str]:
    """The base URL of a vendor that answers each request with these bytes, and hangs up."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(body)
            await writer.drain()
            writer.write_eof()
            while await reader.read(65536):
                pass
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
