"""Before a request, without a database of one's own: a PostgreSQL server that starts on demand.

Every process that uses the server holds a shared lock on ``users.lock``; the kernel drops it whatever
ends the process. The one who gets that lock for itself on leaving is the last, and stops the server.
Starting and stopping happen under ``start.lock``. A server that outlived all its users is adopted.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg
from platformdirs import user_data_path

from pgnexus.db.binaries import SYSTEM_DIR, Binaries, Owner
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseUnavailable, UnsuitableDatabase

log = logging.getLogger(__name__)

_PORT = 5432  # only a part of the socket's name
_SOCKET_PATH_LIMIT = 103  # bytes, on the strictest system
_START_TIMEOUT = 120  # seconds; crash recovery may take a while
_NO_PID = "2000000000"  # beyond what any system gives out
_LOG_LIMIT = 10 * 1024 * 1024
_SETTINGS = {"listen_addresses": "", "shared_buffers": "128MB", "max_connections": "200"}


def default_data_dir() -> Path:
    """Where the embedded server keeps its data: the user's data directory, as root /var/lib/pgnexus."""
    return SYSTEM_DIR / "data" if os.geteuid() == 0 else user_data_path("pgnexus")


class EmbeddedServer:
    """One PostgreSQL server on a private Unix socket, shared by all processes that name its directory."""

    def __init__(
        self,
        data_dir: Path | str | None = None,
        bin_dir: Path | str | None = None,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """``settings`` are for the server, when this process is the one that starts it."""
        self.data_dir = Path(data_dir or default_data_dir()).absolute()
        self._bin_dir = Path(bin_dir) if bin_dir else None
        self._settings = {**_SETTINGS, **(settings or {})}
        self._cluster = self.data_dir / "postgresql"
        self._users: int | None = None
        self._pid = os.getpid()

    @property
    def url(self) -> str:
        """The URL of the database `pgnexus` on the running server."""
        return f"postgresql://postgres@/pgnexus?host={quote(str(self._socket_dir()), safe='')}&port={_PORT}"

    def start(self) -> str:
        """Join the server, starting it when it does not run; its URL. Blocks, for seconds at worst.

        Called again, it starts a server that was killed meanwhile.

        Raises `UnsuitableDatabase` when there are no programs, or they cannot serve this directory, and
        `DatabaseUnavailable` with the end of the server's log when it does not come up.
        """
        owner = Owner.current()
        self._make_data_dir(owner)
        binaries = Binaries.find(owner, self._bin_dir)
        with self._lock("start.lock"):
            if self._users is not None:
                self._bring_up(binaries)
                return self.url
            users = os.open(self.data_dir / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
                self._bring_up(binaries)
            except BaseException:
                os.close(users)
                raise
            self._users, self._pid, self._binaries = users, os.getpid(), binaries
        atexit.register(self.stop)
        return self.url

    def stop(self) -> bool:
        """Leave; the last one stops the server. Whether that was us."""
        if self._users is None or self._pid != os.getpid():  # a forked child leaves its parent's server alone
            return False
        atexit.unregister(self.stop)
        with self._lock("start.lock"):
            users, self._users = self._users, None
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            finally:
                os.close(users)
            self._shut_down(self._binaries)
            return True

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_data_dir(self, owner: Owner) -> None:
        try:
            self.data_dir.mkdir(mode=0o755 if owner.foreign else 0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UnsuitableDatabase(f"cannot make the data directory {self.data_dir}: {error}") from error
        if owner.foreign and not _may_enter(self.data_dir, owner):
            raise UnsuitableDatabase(
                f"as root, PostgreSQL runs as another user, who cannot enter {self.data_dir}; "
                f"choose a data directory outside, such as {SYSTEM_DIR}/data"
            )

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        handle = os.open(self.data_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _bring_up(self, binaries: Binaries) -> None:
        if not (self._cluster / "PG_VERSION").exists():
            self._initialise(binaries)
        self._check_major(binaries)
        if not self._answers():
            self._launch(binaries)
        with self._connect() as connection:
            if not connection.execute(load("find_database")).fetchone():
                connection.execute(load("create_database"))

    def _check_major(self, binaries: Binaries) -> None:
        made_by = int((self._cluster / "PG_VERSION").read_text().split(".")[0])
        if made_by != binaries.major:
            raise UnsuitableDatabase(
                f"{self._cluster} was made by PostgreSQL {made_by}, and the programs in "
                f"{binaries.directory} are PostgreSQL {binaries.major}: "
                "move the data with pg_dump, or choose another data directory"
            )

    def _initialise(self, binaries: Binaries) -> None:
        """initdb beside its place, then rename: half a directory is never taken for a whole one."""
        draft = self._cluster.with_suffix(".new")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(mode=0o700)
            os.chown(draft, binaries.owner.uid, binaries.owner.gid)
        except OSError as error:
            raise UnsuitableDatabase(f"cannot make {draft}: {error}") from error
        quick = ["--no-sync"] if self._settings.get("fsync") == "off" else []
        done = binaries.run(
            "initdb", "--pgdata", str(draft), "--username", "postgres", "--encoding", "UTF8", "--locale", "C",
            "--auth-local", "trust", "--auth-host", "reject", *quick,
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise UnsuitableDatabase(f"initdb failed for {self.data_dir}:\n{_tail(done.stdout)}")
        draft.rename(self._cluster)

    def _launch(self, binaries: Binaries) -> None:
        """Start the postmaster; after a kill -9 its children may hold the old one's memory for a moment."""
        self._clear_stale_pid()
        self._rotate_log()
        if self._postmaster() is not None:
            # It runs and cannot be reached, for its socket is gone from a temporary directory.
            self._shut_down(binaries)
        options = {
            **self._settings,
            "port": str(_PORT),
            "unix_socket_directories": self._make_socket_dir(binaries),
        }
        words = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        arguments = ["--pgdata", str(self._cluster), "--log", str(self._log), "--options", shlex.join(words)]
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            done = binaries.run("pg_ctl", "start", "--wait", "--timeout", str(_START_TIMEOUT), *arguments)
            if done.returncode == 0:
                return
            tail = _tail(self._read_log() or done.stdout)
            if "shared memory block" not in tail or time.monotonic() > deadline:
                raise DatabaseUnavailable(f"the embedded server in {self.data_dir} does not start:\n{tail}")
            time.sleep(0.1)

    def _shut_down(self, binaries: Binaries) -> None:
        if self._postmaster() is None:
            return
        done = binaries.run("pg_ctl", "stop", "--wait", "--mode", "fast", "--pgdata", str(self._cluster))
        if done.returncode != 0 and self._postmaster() is not None:
            log.warning("the embedded server in %s does not stop:\n%s", self.data_dir, _tail(done.stdout))

    @property
    def _log(self) -> Path:
        return self._cluster / "server.log"

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
            return (self._cluster / "postmaster.pid").read_text().splitlines()
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
            if Path("/proc/self").exists() and not Path(f"/proc/{pid}/cwd").samefile(self._cluster):
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
        (self._socket_dir() / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)
        if lines := self._pid_file():
            (self._cluster / "postmaster.pid").write_text("\n".join([_NO_PID, *lines[1:]]) + "\n")

    def _socket_dir(self) -> Path:
        """Where the running server says its socket is, else where it shall be."""
        lines = self._pid_file()
        if len(lines) > 4 and lines[4]:
            return Path(lines[4])
        name = f"/.s.PGSQL.{_PORT}"
        if len(os.fsencode(self._cluster)) + len(name) <= _SOCKET_PATH_LIMIT:
            return self._cluster
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"pgnexus-{digest}"

    def _make_socket_dir(self, binaries: Binaries) -> str:
        path = self._socket_dir()
        if path != self._cluster:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
                os.chown(path, binaries.owner.uid, binaries.owner.gid)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != binaries.owner.uid or found.st_mode & 0o077:
                raise UnsuitableDatabase(
                    f"{path} belongs to somebody else; remove it, or shorten {self.data_dir}"
                )
        return str(path)

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._socket_dir()), port=_PORT, user="postgres", dbname="postgres", autocommit=True,
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


def _may_enter(path: Path, owner: Owner) -> bool:
    """Whether the server's user can pass all the directories down to ``path``."""
    for directory in [path, *path.parents]:
        found = directory.stat()
        shift = 6 if found.st_uid == owner.uid else 3 if found.st_gid == owner.gid else 0
        if not (found.st_mode >> shift) & 0o1:
            return False
    return True


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])
