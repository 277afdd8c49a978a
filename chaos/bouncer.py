"""Between a process and its database: Debian's PgBouncer in transaction mode, to be stopped and killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.server import HOST, free_port
from pgnexus.db.binaries import Owner

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
_PATIENCE = 30.0  # seconds for it to listen, or to end

# A server that was away is tried again soon: by default it is called down for 15 seconds after each try.
_CONFIG = """\
[databases]
* = host={host} port={upstream}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 1000
server_login_retry = 1
logfile = {log}
"""


class Bouncer:
    """A PgBouncer before the server at ``upstream``, its files in ``path``. All methods block.

    Who connects is believed, and must be one of ``users``. ``PROGRAM`` is None where PgBouncer is not installed.
    """

    def __init__(
        self,
        path: Path,
        upstream: int,
        *,
        host: str = HOST,
        users: Sequence[str] = ("postgres",),
        pool_size: int = 10,
    ) -> None:
        self.path = path
        self.log = path / "pgbouncer.log"
        self.port = free_port()
        self._host = host
        self._config = _CONFIG.format(
            host=host,
            upstream=upstream,
            port=self.port,
            users=path / "users.txt",
            pool_size=pool_size,
            log=self.log,
        )
        self._users = "".join(f'"{user}" ""\n' for user in users)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, role: str, database: str) -> str:
        """The URL of a database as this role, through it."""
        return f"postgresql://{role}@{self._host}:{self.port}/{database}?sslmode=disable"

    def start(self) -> None:
        """Start it; returns when it listens. It refuses to be root, and runs as the server's user there."""
        assert PROGRAM is not None
        owner = Owner.current()
        self.path.mkdir(parents=True, exist_ok=True)
        os.chown(self.path, owner.uid, owner.gid)
        (self.path / "users.txt").write_text(self._users)
        config = self.path / "pgbouncer.ini"
        config.write_text(self._config)
        since = self.log.stat().st_size if self.log.exists() else 0
        self._process = subprocess.Popen(
            [PROGRAM, "--quiet", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=owner.uid if owner.foreign else None,
            group=owner.gid if owner.foreign else None,
            extra_groups=[] if owner.foreign else None,
            cwd="/",
            start_new_session=True,
        )
        self._wait(since)

    def stop(self) -> None:
        """End it at once, as SIGTERM does; its clients' connections break."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_PATIENCE)
            self._process = None

    def _wait(self, since: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while "process up" not in (said := self._said(since)):
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise RuntimeError(f"PgBouncer does not start: {said or 'it said nothing'}")
            time.sleep(0.02)

    def _said(self, since: int) -> str:
        return self.log.read_bytes()[since:].decode() if self.log.exists() else ""
