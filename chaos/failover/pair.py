"""Two servers, of which one is the primary and the other its synchronous standby; which is which changes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
from psycopg import sql

from chaos.queries import load
from chaos.server import HOST, PostgresServer, free_port

_PATIENCE = 120.0  # seconds for a standby to follow
_SETTINGS = {
    "wal_level": "replica",
    "hot_standby": "on",
    "synchronous_commit": "on",  # wait until the standby has it on its disk, too
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
}


class Pair:
    """A primary and a standby on two ports; after `promote` they have changed places. All methods block.

    When not ``synchronous`` no commit waits for the standby, and a failover may lose the last ones.
    """

    def __init__(self, path: Path, *, synchronous: bool) -> None:
        self._synchronous = synchronous
        ports = [free_port(), free_port()]
        self._servers = [
            PostgresServer(path / name, port=port, settings={**_SETTINGS, "cluster_name": name})
            for name, port in zip(("left", "right"), ports, strict=True)
        ]

    @property
    def primary(self) -> PostgresServer:
        return self._servers[0]

    @property
    def standby(self) -> PostgresServer:
        return self._servers[1]

    def url(self, database: str) -> str:
        """Names both servers, the same way whoever is the primary, and wants the one that can be written to."""
        ports = sorted(server.port for server in self._servers)
        hosts = ",".join(f"{HOST}:{port}" for port in ports)
        return f"postgresql://postgres@{hosts}/{database}?target_session_attrs=read-write"

    def start(self) -> None:
        """Make and start both; returns when the standby follows."""
        self.primary.initialise()
        self.primary.start()
        self.rebuild()

    def stop(self) -> None:
        for server in self._servers:
            if server.pid is not None:
                server.stop("immediate")

    def rebuild(self) -> None:
        """Make the standby anew from the primary; returns when it follows."""
        standby = self.standby
        shutil.rmtree(standby.data, ignore_errors=True)
        standby.prepare()
        source = f"host={HOST} port={self.primary.port} user=postgres application_name={standby.path.name}"
        standby.run(
            *("pg_basebackup", "--pgdata", str(standby.data), "--dbname", source, "--checkpoint", "fast"),
            *("--wal-method", "stream", "--write-recovery-conf", "--no-sync"),
        )
        standby.start()
        self._wait("following")
        if self._synchronous:
            self._wait_for_standby(standby.path.name)
            self._wait("synchronous")

    def kill_primary(self) -> None:
        """All its processes at once, as when the machine is gone."""
        postmaster = self.primary.pid
        assert postmaster is not None
        os.kill(postmaster, signal.SIGSTOP)  # so that it starts no more children
        for pid in (*_children(postmaster), postmaster):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def promote(self) -> None:
        """Make the standby the primary; nothing waits for the other one, which is gone."""
        self._servers.reverse()
        self.primary.promote()

    def pause_replay(self) -> None:
        """The standby still stores what it is sent, but has it yet to replay when it is promoted."""
        with psycopg.connect(self.standby.url(), autocommit=True) as connection:
            connection.execute("select pg_wal_replay_pause()")

    def deafen_standby(self) -> None:
        """Stop the process that sends to the standby: commits that wait for it wait on, others are ahead of it."""
        with psycopg.connect(self.primary.url(), autocommit=True) as connection:
            for (pid,) in connection.execute(load("following")):
                os.kill(pid, signal.SIGSTOP)

    def _wait_for_standby(self, name: str) -> None:
        with psycopg.connect(self.primary.url(), autocommit=True) as connection:
            setting = sql.SQL("alter system set synchronous_standby_names = {}").format(sql.Literal(name))
            connection.execute(setting)
            connection.execute("select pg_reload_conf()")

    def _wait(self, query: str) -> None:
        with psycopg.connect(self.primary.url(), autocommit=True) as connection:
            _until(lambda: connection.execute(load(query)).fetchone() is not None, query)


def _until(met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not met():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {_PATIENCE:g} s: {what}")
        time.sleep(0.05)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(stat.parent.name))
    return found
