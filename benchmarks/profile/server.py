"""A server that tells what its statements cost: another PostgreSQL than the embedded one, which has no contrib."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgnexus.db.embedded import EmbeddedServer

DEBIAN = Path("/usr/lib/postgresql/15/bin")
_TELLING = {
    "pg_stat_statements.track": "all",
    "pg_stat_statements.track_planning": "on",
    "pg_stat_statements.max": "10000",
    "track_functions": "all",
    "max_wal_size": "4GB",  # no checkpoint meanwhile, whose page images would hide what a request writes
}
_EXPLAINING = {
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_wal": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",
}


@dataclass(frozen=True, slots=True)
class TellingServer:
    """Its URL, and its log where that is known."""

    url: str
    log: Path | None


@contextmanager
def telling_server(url: str | None, programs: Path, explain: float) -> Iterator[TellingServer]:
    """The server of ``url``, or one that ``programs`` run in a temporary directory.

    ``explain`` is the share of statements whose plans the latter logs.
    """
    if url is not None:
        yield TellingServer(url, None)
        return
    libraries, settings = "pg_stat_statements", dict(_TELLING)
    if explain:
        libraries += ",auto_explain"
        settings |= _EXPLAINING | {"auto_explain.sample_rate": str(explain)}
    path = Path(tempfile.mkdtemp(prefix="pgnexus-profile-"))
    path.chmod(0o755)  # as root, the server runs as another user
    try:
        with EmbeddedServer(
            path, programs, settings={**settings, "shared_preload_libraries": libraries}
        ) as server:
            yield TellingServer(server.url, path / "postgresql" / "server.log")
    finally:
        shutil.rmtree(path, ignore_errors=True)
