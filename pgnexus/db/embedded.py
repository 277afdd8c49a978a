"""Before a request, without a database of one's own: a PostgreSQL server that starts on demand.

Every process that uses the server holds a shared lock on ``users.lock``; the kernel drops it whatever
ends the process. The one who gets that lock for itself on leaving is the last, and stops the server.
Starting and stopping happen under ``start.lock``. A server that outlived all its users is adopted.
"""

from __future__ import annotations

import atexit
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from platformdirs import user_data_path

from pgnexus.db.binaries import SYSTEM_DIR, Binaries, Owner, make_directory
from pgnexus.db.cluster import PORT, Cluster
from pgnexus.errors import ServiceMisused, UnsuitableDatabase

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
        self._cluster: Cluster | None = None
        self._users: int | None = None
        self._pid = os.getpid()

    @property
    def url(self) -> str:
        """The URL of the database `pgnexus` on the started server."""
        if self._cluster is None:
            raise ServiceMisused(f"the embedded server in {self.data_dir} is not started")
        return f"postgresql://postgres@/pgnexus?host={quote(str(self._cluster.socket_dir()), safe='')}&port={PORT}"

    def start(self) -> str:
        """Join the server, starting it when it does not run; its URL. Blocks, for seconds at worst.

        Called again, it starts a server that was killed meanwhile.

        Raises `UnsuitableDatabase` when there are no programs, or they cannot serve this directory, and
        `DatabaseUnavailable` with the end of the server's log when it does not come up.
        """
        owner = Owner.current()
        self._make_data_dir(owner)
        binaries = Binaries.find(owner, self._bin_dir)
        cluster = Cluster(self.data_dir / "postgresql", binaries, self._settings)
        with self._lock("start.lock"):
            if self._users is not None:
                cluster.bring_up()
                return self.url
            users = os.open(self.data_dir / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
                cluster.bring_up()
            except BaseException:
                os.close(users)
                raise
            self._users, self._pid, self._cluster = users, os.getpid(), cluster
        atexit.register(self.stop)
        return self.url

    @property
    def is_running(self) -> bool:
        """Whether the server is there that this process has joined; does not block."""
        return self._cluster is not None and self._cluster.is_running

    def stop(self) -> bool:
        """Leave; the last one stops the server. Whether that was us."""
        forked = self._pid != os.getpid()  # a child leaves its parent's server alone
        if self._users is None or self._cluster is None or forked:
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
            self._cluster.shut_down()
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
            make_directory(self.data_dir, 0o755 if owner.foreign else 0o700)
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


def _may_enter(path: Path, owner: Owner) -> bool:
    """Whether the server's user can pass all the directories down to ``path``."""
    for directory in [path, *path.parents]:
        found = directory.stat()
        shift = 6 if found.st_uid == owner.uid else 3 if found.st_gid == owner.gid else 0
        if not (found.st_mode >> shift) & 0o1:
            return False
    return True
