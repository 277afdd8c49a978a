"""`pgnexus batch`, its two files: lines in, lines out, and what of them is done already.

OUT has one JSON object a line: line (number in IN), id, status, response, message (when it is more than the
response), model, provider, usage, cost, finish_reason, error, request_id, input_hash. Where a line of IN has
been asked again, the last line of OUT about it counts.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic_core import from_json, to_json

from pgnexus.errors import InvalidRequest, PgnexusError

_BEGINNING: Final = b'{"line":'
_LONGEST_TRIES: Final = 255


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line of IN that has something in it."""

    number: int
    text: bytes
    options: bytes = b""  # what the command line adds to it

    @property
    def hash(self) -> int:
        """64 bits of what is asked; never 0."""
        asked = self.text + b"\n" + self.options if self.options else self.text
        return int.from_bytes(hashlib.sha256(asked).digest()[:8], "big") or 1


class InputFile:
    """IN, read line by line, from the start each time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[InputLine]:
        with _opened(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield InputLine(number, text)

    def count(self) -> int:
        """How many lines there are to ask. Raises `InvalidRequest` for what could not be read a second time."""
        if self.path.is_fifo():
            raise InvalidRequest(f"{self.path}: a pipe can be read only once; write it to a file first")
        return sum(1 for _ in self)


class UnwritableOutput(PgnexusError):
    """OUT cannot be written any more, for a full disk or the like; what was asked is stored."""

    type = "unwritable_output"


class Done:
    """What OUT says about the lines of IN, in nine bytes a line."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._failures = bytearray()

    @property
    def size_in_bytes(self) -> int:
        return len(self._hashes) * self._hashes.itemsize + len(self._failures)

    def note(self, number: int, input_hash: int, *, ok: bool) -> None:
        more = number + 1 - len(self._hashes)
        if more > 0:
            self._hashes.extend([0] * more)
            self._failures.extend(bytes(more))
        self._hashes[number] = input_hash
        self._failures[number] = 0 if ok else min(_LONGEST_TRIES, self._failures[number] + 1)

    def has(self, line: InputLine) -> bool:
        """Whether OUT has an outcome of just this line."""
        return line.number < len(self._hashes) and self._hashes[line.number] == line.hash

    def failures(self, line: InputLine) -> int:
        """How often it failed since it last succeeded."""
        return self._failures[line.number] if self.has(line) else 0


class OutputFile:
    """OUT: read once, then appended to, in whole lines that are on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = Done()
        self._file = _opened(path, "a+b")

    def open(self) -> None:
        """Take the file for ourselves, read it, cut off a last line that a crash left half-written.

        Raises `InvalidRequest` when another process has it, or when it is not ours: nothing is changed then.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(f"{self.path}: another batch is writing it") from None
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n") and _BEGINNING.startswith(line[: len(_BEGINNING)]):
                self._file.truncate(end)
                break
            self._read(number, line)
            end += len(line)

    def _read(self, number: int, line: bytes) -> None:
        try:
            found = from_json(line)
            self.done.note(int(found["line"]), int(found["input_hash"], 16), ok=found["status"] == "success")
        except (ValueError, KeyError, TypeError, OverflowError):
            raise InvalidRequest(
                f"{self.path}, line {number}: not written by `pgnexus batch`; give another output file"
            ) from None

    async def write(self, lines: list[bytes]) -> None:
        """Append whole lines and bring them to the disk."""
        await asyncio.to_thread(self._append, b"".join(lines))

    def _append(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UnwritableOutput(
                f"{self.path} cannot be written: {error.strerror}; "
                "nothing is lost: mend that, and run the same command again"
            ) from error

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was told
            self._file.close()


def output_line(line: InputLine, outcome: dict[str, Any]) -> bytes:
    """A line of OUT; ``outcome`` has what is to be said beside the line's number and hash."""
    document = {"line": line.number, **outcome, "input_hash": f"{line.hash:016x}"}
    return to_json(document, inf_nan_mode="null") + b"\n"


def _opened(path: Path, mode: str) -> BinaryIO:
    try:
        return path.open(mode)  # type: ignore[return-value]
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from None
