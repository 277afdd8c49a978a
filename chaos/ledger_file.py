"""A caller's own ledger: a file that it writes before it tells anybody, and that outlives it.

One JSON line each, on the disk before the caller goes on: ``asks`` before a request is sent, ``accepted`` when pgnexus
has said so, ``undone`` when its transaction cannot have been committed, ``heard``, ``read`` and ``left`` for what
became of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID


class LedgerFile:
    """Where one caller writes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, *lines: dict[str, Any]) -> None:
        """Write these lines; they are on the disk when this returns."""
        os.write(self._file, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        os.fsync(self._file)


@dataclass
class Asked:
    """One request, or run of a flow, as its caller knows it."""

    request_id: UUID
    kind: str
    mark: str
    caller: str
    options: dict[str, Any]
    key: str | None = None
    cancel_after: float | None = None
    chunks: int | None = None
    accepted: bool = False
    undone: bool = False  # its transaction was rolled back
    left: bool = False  # its caller went away, or cancelled it
    heard: list[tuple[str, str]] = field(default_factory=list)  # (status, text), each time somebody waited
    read: str | None = None  # a stream to its end
    faults: list[str] = field(default_factory=list)  # errors that no caller should meet

    @property
    def agent(self) -> str | None:
        return self.options.get("agent_id")

    @property
    def undecided(self) -> bool:
        """Whether its caller does not know what became of it."""
        return not (self.accepted or self.undone)


def read_ledgers(paths: Iterable[Path]) -> list[Asked]:
    """All that callers have written; a last line that a kill cut off is passed over.

    What one asked another may hear of: a key is asked again by who comes after.
    """
    found: dict[UUID, Asked] = {}
    lines = [(line, path.stem) for path in sorted(paths) for line in _lines(path)]
    for line, caller in sorted(lines, key=lambda one: "asks" not in one[0]):
        _take(found, line, caller)
    return list(found.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in whole]


def _take(found: dict[UUID, Asked], line: dict[str, Any], caller: str) -> None:
    what = next(iter(line))
    request_id = UUID(line[what])
    if what == "asks":
        names = ("kind", "mark", "options", "key", "cancel_after", "chunks")
        found.setdefault(request_id, Asked(request_id, caller=caller, **{name: line[name] for name in names}))
        return
    one = found.get(request_id)
    if one is None:
        return  # asked in a file that is not read here
    if what == "accepted":
        one.accepted = True
    elif what == "undone":
        one.undone = True
    elif what == "left":
        one.left = True
    elif what == "heard":
        one.heard.append((line["status"], line["text"]))
    elif what == "read":
        one.read = line["text"]
    elif what == "fault":
        one.faults.append(line["error"])
