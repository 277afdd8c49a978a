"""Before a request, without a database of one's own: one PostgreSQL data directory and its server.

Whoever calls here holds the lock that keeps others from starting and stopping the same server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgnexus.db.binaries import Binaries
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseUnavailable, UnsuitableDatabase

log = logging.getLogger(__name__)

PORT = 5432  # only a part of the socket's name
_SOCKET_PATH_LIMIT = 103  # bytes, on the strictest system
_START_TIMEOUT = 120  # seconds; crash recovery may take a while
_NO_PID = "2000000000"  # beyond what any system gives out
_LOG_LIMIT = 10 * 1024 * 1024


@dataclass(frozen=True)
class Cluster:
    """The data directory ``path``, served by ``binaries`` with ``settings`` on a private Unix socket."""

    path: Path
    binaries: Binaries
    settings: Mapping[str, str]

    def bring_up(self) -> None:
        """Have the server run and hold the database `pgnexus`, whatever state it was left in."""
        if not (self.path / "PG_VERSION").exists():
            self._initialise()
        self._check_major()
        if not self._answers():
            self._launch()
        with self._connect() as connection:
            if not connection.execute(load("find_database")).fetchone():
                connection.execute(load("create_database"))

    @property
    def is_running(self) -> bool:
        """Whether its postmaster lives, which may be starting or stopping."""
        return self._postmaster() is not None

    def _check_major(self) -> None:
        made_by = int((self.path / "PG_VERSION").read_text().split(".")[0])
        if made_by != self.binaries.major:
            raise UnsuitableDatabase(
                f"{self.path} was made by PostgreSQL {made_by}, and the programs in "
                f"{self.binaries.directory} are PostgreSQL {self.binaries.major}: "
                "move the data with pg_dump, or choose another data directory"
            )

    def _initialise(self) -> None:
        """initdb beside its place, then rename: half a directory is never taken for a whole one."""
        draft = self.path.with_suffix(".new")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(mode=0o700)
            os.chown(draft, self.binaries.owner.uid, self.binaries.owner.gid)
        except OSError as error:
            raise UnsuitableDatabase(f"cannot make {draft}: {error}") from error
        quick = ["--no-sync"] if self.settings.get("fsync") == "off" else []
        done = self.binaries.run(
            "initdb", "--pgdata", str(draft), "--username", "postgres", "--encoding", "UTF8", "--locale", "C",
            "--auth-local", "trust", "--auth-host", "reject", *quick,
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise UnsuitableDatabase(f"initdb failed for {self.path.parent}:\n{_tail(done.stdout)}")
        draft.rename(self.path)

    def _launch(self) -> None:
        """Start the postmaster; after a kill -9 its children may hold the old one's memory for a moment."""
        self._clear_stale_pid()
        self._rotate_log()
        if self._postmaster() is not None:
            # It runs and cannot be reached, for its socket is gone from a temporary directory.
            self.shut_down()
        options = {
            **self.settings,
            "port": str(PORT),
            "unix_socket_directories": self._make_socket_dir(),
        }
        words = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        arguments = ["--pgdata", str(self.path), "--log", str(self._log), "--options", shlex.join(words)]
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            done = self.binaries.run(
                "pg_ctl", "start", "--wait", "--timeout", str(_START_TIMEOUT), *arguments
            )
            if done.returncode == 0:
                return
            tail = _tail(self._read_log() or done.stdout)
            if "shared memory block" not in tail or time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"the embedded server in {self.path.parent} does not start:\n{tail}"
                )
            time.sleep(0.1)

    def shut_down(self) -> None:
        """Stop the server if it runs; its clients' transactions are rolled back."""
        if self._postmaster() is None:
            return
        socket_dir = self.socket_dir()
        done = self.binaries.run("pg_ctl", "stop", "--wait", "--mode", "fast", "--pgdata", str(self.path))
        if done.returncode != 0 and self._postmaster() is not None:
            log.warning("the embedded server in %s does not stop:\n%s", self.path.parent, _tail(done.stdout))
        elif socket_dir != self.path:
            with suppress(OSError):
                socket_dir.rmdir()

    @property
    def _log(self) -> Path:
        return self.path / "server.log"

    def _read_log(self) -> str:
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, self._log.stat().st_size - 8192))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _rotate_log(self) -> None:
        with suppress(FileNotFoundError):
            if self._log.stat().st_size > _LOG_LIMIT:
                self._log.replace(self._log.with_suffix(".log.1"))

    def _pid_file(self) -> list[str]:
        try:
            return (self.path / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _postmaster(self) -> int | None:
        """The pid of our running postmaster; another program may have the number by now."""
        lines = self._pid_file()
        pid = int(lines[0]) if lines and lines[0].isdigit() else 0
        if pid <= 0:
            return None
        try:
            os.kill(pid, 0)
            if Path("/proc/self").exists() and not Path(f"/proc/{pid}/cwd").samefile(self.path):
                return None
        except (ProcessLookupError, FileNotFoundError):
            return None
        except PermissionError:
            pass
        return pid

    def _clear_stale_pid(self) -> None:
        """PostgreSQL itself passes over a dead pid, but not over one that another program has got.

        Of the pid file only the number is replaced: by its rest the server sees whether children of the old
        one still hold its memory, and two servers on the same files would ruin them.
        """
        if self._postmaster() is not None:
            return
        (self.socket_dir() / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        if lines := self._pid_file():
            (self.path / "postmaster.pid").write_text("\n".join([_NO_PID, *lines[1:]]) + "\n")

    def socket_dir(self) -> Path:
        """Where the running server says its socket is, else where it shall be."""
        lines = self._pid_file()
        if len(lines) > 4 and lines[4]:
            return Path(lines[4])
        name = f"/.s.PGSQL.{PORT}"
        if len(os.fsencode(self.path)) + len(name) <= _SOCKET_PATH_LIMIT:
            return self.path
        digest = hashlib.sha256(os.fsencode(self.path.parent)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"pgnexus-{digest}"

    def _make_socket_dir(self) -> str:
        path = self.socket_dir()
        if path != self.path:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
                os.chown(path, self.binaries.owner.uid, self.binaries.owner.gid)
            found = path.lstat()
            if (
                not stat.S_ISDIR(found.st_mode)
                or found.st_uid != self.binaries.owner.uid
                or found.st_mode & 0o077
            ):
                raise UnsuitableDatabase(
                    f"{path} belongs to somebody else; remove it, or shorten {self.path.parent}"
                )
        return str(path)

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.socket_dir()), port=PORT, user="postgres", dbname="postgres", autocommit=True,
            connect_timeout=10,
        )  # fmt: skip

    def _answers(self) -> bool:
        """Whether a server is there already; one that is starting or stopping is waited for."""
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                self._connect().close()
                return True
            except psycopg.OperationalError as error:
                passing = "starting up" in str(error) or "shutting down" in str(error)
                if not passing or self._postmaster() is None or time.monotonic() > deadline:
                    return False
            time.sleep(0.05)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])
