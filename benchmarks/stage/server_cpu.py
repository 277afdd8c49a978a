"""How long the server's processes have been computing, all together, as the kernel counts it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psycopg

from benchmarks.queries import load

_TICK = 1 / os.sysconf("SC_CLK_TCK")
# Places in /proc/<pid>/stat behind the command's closing bracket.
_PARENT, _OWN, _OF_CHILDREN = 1, slice(11, 13), slice(11, 15)


class ServerCpu:
    """Counts for one server on this machine; of another machine's server it knows nothing."""

    def __init__(self, url: str) -> None:
        self._postmaster = _postmaster(url)

    def seconds(self) -> float | None:
        """Of the postmaster, its living children, and those that have left it already."""
        if self._postmaster is None:
            return None
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has left meanwhile
                fields = _fields(path)
                if int(path.parent.name) == self._postmaster:
                    ticks += sum(map(int, fields[_OF_CHILDREN]))
                elif int(fields[_PARENT]) == self._postmaster:
                    ticks += sum(map(int, fields[_OWN]))
        return ticks * _TICK


def process_seconds(pid: int) -> float | None:
    """The same of one process."""
    with suppress(OSError):
        return sum(map(int, _fields(Path(f"/proc/{pid}/stat"))[_OWN])) * _TICK
    return None


def _fields(path: Path) -> list[str]:
    return path.read_text().rpartition(")")[2].split()


def _postmaster(url: str) -> int | None:
    """The parent of the process that serves us, when it is a process of this machine."""
    with psycopg.connect(url, autocommit=True) as connection:
        if not _is_local(connection):
            return None
        row = connection.execute(load("backend")).fetchone()
        assert row is not None
        with suppress(OSError):
            return int(_fields(Path(f"/proc/{row[0]}/stat"))[_PARENT])
    return None


def _is_local(connection: psycopg.Connection[tuple[int]]) -> bool:
    return connection.info.host.startswith("/")
