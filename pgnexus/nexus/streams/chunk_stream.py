"""Nexus side, beside `route_llm`: what one claim of a request has streamed and not stored yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json

from pgnexus.providers.provider import Delta
from pgnexus.storable import clean

_PATIENCE = 1.0  # seconds that the end of a call waits for its last chunk


@dataclass(frozen=True, slots=True)
class Flush:
    """What goes into the database at once; ``number`` is None for the first flush of a claim."""

    stream: ChunkStream
    number: int | None
    discard: bool
    text: str
    reasoning: str
    tool_calls: str | None

    @property
    def size(self) -> int:
        return len(self.text) + len(self.reasoning) + len(self.tool_calls or "")


@dataclass(slots=True)
class _Pending:
    """Pieces that wait to be stored, merged as they come."""

    discard: bool = False
    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.discard or bool(self.texts or self.reasonings or self.tool_calls)

    def add(self, delta: Delta) -> None:
        if delta.text:
            self.texts.append(delta.text)
        if delta.reasoning:
            self.reasonings.append(delta.reasoning)
        for call in delta.tool_calls:
            if not (self.tool_calls and _continue(self.tool_calls[-1], call)):
                self.tool_calls.append(call)


def _continue(call: dict[str, Any], piece: dict[str, Any]) -> bool:
    """Lengthen the arguments of ``call``, if ``piece`` is nothing but more of them."""
    function = piece.get("function")
    if (
        piece.keys() - {"type"} != {"index", "function"}
        or piece["index"] != call.get("index")
        or not isinstance(function, dict)
        or function.keys() != {"arguments"}
        or not isinstance(function["arguments"], str)
    ):
        return False
    known = call.get("function") or {}
    call["function"] = known | {"arguments": (known.get("arguments") or "") + function["arguments"]}
    return True


class ChunkStream:
    """One claim's stream. `put` and `discard` never wait; what comes while a flush is on its way is merged."""

    def __init__(
        self,
        request_id: UUID,
        attempt: int,
        serial: int,
        largest: int,
        wake: Callable[[ChunkStream], None],
    ) -> None:
        self.request_id = request_id
        self.attempt = attempt
        self.serial = serial  # counts the streams of this process
        self.claim = uuid4()
        self.due = 0  # the tick from which it may be flushed again
        self.hurried = False
        self._wake = wake
        self._largest = largest
        self._room = largest
        self._number: int | None = None
        self._pending = _Pending()
        self._under_way = False
        self._said = False  # something since the last discard is stored, or may be
        self._refused = False
        self._clean = asyncio.Event()
        self._clean.set()

    def put(self, delta: Delta) -> None:
        """The next piece of the answer; past the largest answer there is, nothing more is stored."""
        delta, size = _storable(delta)
        self._room -= size
        if self._refused or self._room < 0 or size == 0:
            return
        self._pending.add(delta)
        self._changed()

    def discard(self) -> None:
        """Make void all that was put: the call broke off, and another may begin."""
        self._room = self._largest
        discards = self._pending.discard or self._said or self._under_way
        self._pending = _Pending(discard=discards)
        if discards and not self._refused:
            self._changed()
        elif not self._under_way:
            self._clean.set()

    async def flush(self) -> None:
        """Wait until all that was put is stored, for a second at most; what is late is still stored later."""
        if self._clean.is_set():
            return
        self.hurried = True
        if self._pending and not self._under_way:
            self._wake(self)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._clean.wait()
        except TimeoutError:
            pass

    def take(self, due: int) -> Flush | None:
        """What is to be stored now; `stored` or `refuse`, then `settle` follow. It is due again at that tick."""
        pending, self._pending = self._pending, _Pending()
        if not pending:
            return None
        self._under_way = True
        self.due = due
        self._said = bool(pending.texts or pending.reasonings or pending.tool_calls) or (
            self._said and not pending.discard
        )
        calls = to_json(pending.tool_calls).decode() if pending.tool_calls else None
        texts = "".join(pending.texts), "".join(pending.reasonings)
        return Flush(self, self._number, pending.discard, *texts, calls)

    def stored(self, following: int | None) -> None:
        """The flush is committed; None: another claim has the stream now."""
        self._number = following
        if following is None:
            self.refuse()

    def refuse(self) -> None:
        """Store nothing more."""
        self._refused = True
        self._pending = _Pending()
        if not self._under_way:
            self._clean.set()

    def settle(self) -> None:
        """The flush is over, one way or the other."""
        self._under_way = False
        if self._pending:
            self._wake(self)
        else:
            self.hurried = False
            self._clean.set()

    def _changed(self) -> None:
        first = self._clean.is_set()
        self._clean.clear()
        if first and not self._under_way:
            self._wake(self)


def _storable(delta: Delta) -> tuple[Delta, int]:
    """The piece as the database takes it, and its size in characters."""
    size = len(delta.text) + len(delta.reasoning)
    (text, mended), (reasoning, also) = clean(delta.text), clean(delta.reasoning)
    if not delta.tool_calls:
        return (Delta(text, reasoning) if mended or also else delta), size
    # copied, for they are lengthened by the pieces that follow
    calls = tuple(dict(call) for call in clean(list(delta.tool_calls))[0])
    return Delta(text, reasoning, calls), size + len(to_json(calls))
