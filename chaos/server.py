"""Under everything: a PostgreSQL server of our own on a TCP port, to be stopped, killed and started again."""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql

from pgnexus.db.binaries import Binaries, Owner

HOST = "127.0.0.1"
_DEBIAN = Path("/usr/lib/postgresql/15/bin")
_SETTINGS = {"max_connections": "300", "shared_buffers": "128MB", "log_line_prefix": "%m [%p] %a "}
_PORTS = range(10_000, 32_000)  # below those of clients, as Linux and IANA have them
_PATIENCE = 120.0  # seconds in which a server must have come up; recovery may take a while


def free_port() -> int:
    """A TCP port that nobody has, and that the system gives to no client while its server is away."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise RuntimeError(f"no port of {_PORTS} is free")


class PostgresServer:
    """A server in the directory ``path``, with its data in ``path/data`` and its log in ``path/postgres.log``.

    It runs Debian's PostgreSQL 15 where that is installed, else the embedded one's programs. Everybody on this host may
    connect as ``postgres``, also for replication. All methods block.
    """

    def __init__(
        self, path: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self.data = path / "data"
        self.log = path / "postgres.log"
        self.port = port or free_port()
        self.settings = {**_SETTINGS, **(settings or {})}
        self.owner = Owner.current()
        self.binaries = Binaries.find(self.owner, _DEBIAN if _DEBIAN.exists() else None)

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """Its URL; with ``port`` that of somebody in between."""
        return f"postgresql://postgres@{HOST}:{port or self.port}/{database}"

    def prepare(self) -> None:
        """Make the directory, open to the user that the server runs as (pg_basebackup can fill it, too)."""
        self.path.mkdir(parents=True, exist_ok=True)
        os.chown(self.path, self.owner.uid, self.owner.gid)

    def initialise(self) -> None:
        """Make the data directory."""
        self.prepare()
        self.run(
            *("initdb", "--pgdata", str(self.data), "--username", "postgres", "--encoding", "UTF8"),
            *("--locale", "C", "--auth", "trust", "--no-sync"),
        )

    def start(self) -> None:
        """Start it, and wait until it answers; after a kill -9 its children may hold its memory for a moment."""
        options = {
            **self.settings,
            "port": str(self.port),
            "listen_addresses": HOST,
            "unix_socket_directories": "",
        }
        words = shlex.join(word for key, value in options.items() for word in ("-c", f"{key}={value}"))
        deadline = time.monotonic() + _PATIENCE
        while True:
            done = self.binaries.run(
                *("pg_ctl", "start", "--wait", "--timeout", str(int(_PATIENCE)), "--pgdata", str(self.data)),
                *("--log", str(self.log), "--options", words),
            )
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server in {self.path} does not start: {done.stdout}; see {self.log}")
            time.sleep(0.1)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop it as pg_ctl does; returns when it is gone."""
        self.run("pg_ctl", "stop", "--wait", "--mode", mode, "--pgdata", str(self.data))

    def kill9(self) -> None:
        """Kill -9 the postmaster; its children notice by themselves."""
        if (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def promote(self) -> None:
        """Make a standby a primary; returns when it is one."""
        self.run("pg_ctl", "promote", "--wait", "--pgdata", str(self.data))

    @property
    def pid(self) -> int | None:
        """The postmaster's, while it runs."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            return None
        return pid

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; what it said. Raises when it fails."""
        done = self.binaries.run(program, *arguments)
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stdout}")
        return done.stdout

    def create_database(self, name: str) -> str:
        """Make an empty database; its URL."""
        self._execute("create database {} template template0", name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        self._execute("drop database if exists {} with (force)", name)

    def _execute(self, statement: str, name: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
