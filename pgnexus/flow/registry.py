"""Beside every step: this process as an instance, and its signs of life.

The signs of life are the lease on every task that this process runs. They come from a thread with a
connection of its own, which a busy event loop cannot starve and which dies with the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from uuid import UUID, uuid4

import psycopg

from pgnexus.db.connection import connect_blocking, sever
from pgnexus.db.database import Database
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseUnavailable
from pgnexus.printable import one_line

log = logging.getLogger(__name__)


class Registry:
    """Registers this instance and keeps it alive; `on_lost` hears when others have been given its work."""

    def __init__(
        self, url: str, queue_name: str, *, heartbeat_interval: float, lease: float, connect_timeout: float
    ) -> None:
        self._url = url
        self._interval = heartbeat_interval
        self._lease = lease
        self._connect_timeout = connect_timeout
        self._params = {
            "worker_id": uuid4(),
            "queue_name": queue_name,
            "function_name": f"pgnexus {socket.gethostname()} pid {os.getpid()}",
            "lease": lease,
        }
        self._last_sign = float("-inf")
        self._stopping = threading.Event()
        self._letting_go = threading.Event()
        self._thread: threading.Thread | None = None
        self._callbacks: list[Callable[[], None]] = []

    def instance_id(self) -> UUID:
        """This process's name in ``pgflow.workers``, ``job_results`` and the books."""
        worker_id = self._params["worker_id"]
        assert isinstance(worker_id, UUID)
        return worker_id

    def is_alive(self) -> bool:
        """Whether others still take this instance for alive: nothing may be claimed when it is not."""
        return time.monotonic() - self._last_sign < self._lease

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back in the event loop when this instance comes back after it had been given up."""
        self._callbacks.append(callback)

    def let_go(self) -> None:
        """Give no sign of life until `hold_on`, so that others take the work; from any thread."""
        self._letting_go.set()

    def hold_on(self) -> None:
        """Give signs of life again; from any thread."""
        self._letting_go.clear()

    async def start(self, db: Database) -> None:
        """Register; returns when the first sign of life is stored."""
        await db.query("heartbeat", self._params)
        self._last_sign = time.monotonic()
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._beat, args=(loop,), name="pgnexus heartbeat", daemon=True
        )
        self._thread.start()

    async def stop(self, db: Database) -> None:
        """Say goodbye: what is left of this instance's work is given back at the next sweep of any other."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        try:
            await db.query("mark_worker_stopped", {"worker_id": self.instance_id()})
        except DatabaseUnavailable as error:
            log.warning("instance %s: could not say goodbye: %s", self.instance_id(), one_line(error))

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        connection: psycopg.Connection[tuple[bool]] | None = None
        told = False
        while not self._stopping.wait(self._interval):
            if self._letting_go.is_set():
                continue
            try:
                if connection is None or connection.closed:
                    connection = connect_blocking(
                        self._url, timeout=self._connect_timeout, application_name="pgnexus heartbeat"
                    )
                if self._sign(connection):
                    loop.call_soon_threadsafe(self._lost)
                self._last_sign = time.monotonic()
                told = False
            except (psycopg.Error, DatabaseUnavailable, OSError) as error:
                # the loops speak of an outage; this is what may come of it
                if not told and not self.is_alive():
                    told = True
                    log.warning("instance %s: its lease has run out: %s", self.instance_id(), one_line(error))
                if connection is not None:
                    connection.close()
            except RuntimeError:  # the event loop is closed: the process is ending
                break
        if connection is not None:
            connection.close()

    def _sign(self, connection: psycopg.Connection[tuple[bool]]) -> bool:
        """Store a sign of life; True when this instance had been given up. A hanging peer is cut off."""
        guard = threading.Timer(self._lease / 2, sever, (connection,))
        guard.daemon = True
        guard.start()
        try:
            row = connection.execute(load("heartbeat"), self._params).fetchone()
        finally:
            guard.cancel()
        return row is not None and row[0]

    def _lost(self) -> None:
        log.warning(
            "instance %s: had been given up; others have its work, what it does of it is refused",
            self.instance_id(),
        )
        for callback in self._callbacks:
            callback()
