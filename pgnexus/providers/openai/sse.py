"""Nexus side, under a streamed answer: server-sent events out of bytes, however the network cut them."""

from __future__ import annotations

from typing import Final, NamedTuple

_MARK: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event; ``name`` is empty where the server gave none."""

    name: bytes
    data: bytes


class EventParser:
    """Bytes in, events out. Works on bytes alone, so a character cut in two is no matter.

    >>> parser = EventParser()
    >>> [*parser.feed(b"data: Par"), *parser.feed(b"is\\n\\n")]
    [Event(name=b'', data=b'Paris')]
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the pieces of a line that has not ended
        self._data: list[bytes] = []
        self._name = b""
        self._after_return = False
        self._at_start = True
        self.held = 0
        """Bytes kept of the event that has not ended yet."""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in ``chunk``."""
        if self._after_return and chunk:
            self._after_return = False
            chunk = chunk.removeprefix(b"\n")
        found: list[Event] = []
        for line in chunk.splitlines(keepends=True):
            if line[-1] in b"\r\n":
                self._end_line(line.rstrip(b"\r\n"), found)
            else:
                self._line.append(line)
                self.held += len(line)
        self._after_return = chunk.endswith(b"\r")
        return found

    def finish(self) -> list[Event]:
        """The event that the stream ended with, where the server left out the blank line after it."""
        found: list[Event] = []
        self._end_line(b"", found)
        self._end_event(found)
        return found

    def _end_line(self, line: bytes, found: list[Event]) -> None:
        if self._line:
            self.held -= sum(map(len, self._line))
            line = b"".join((*self._line, line))
            self._line.clear()
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_MARK)
        if not line:
            self._end_event(found)
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self.held += len(line)
        elif field == b"event":
            self._name = value.removeprefix(b" ")
        # All else is a comment, which keeps the connection alive, or of no use here (id, retry).

    def _end_event(self, found: list[Event]) -> None:
        if self._data:
            found.append(Event(self._name, b"\n".join(self._data)))
            self._data.clear()
        self._name = b""
        self.held = 0
