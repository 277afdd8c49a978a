"""Between the steps of a request: LISTEN on a connection of its own, so that waiting is cheap.

A NOTIFY that is missed costs time, never a request: after every (re)connect all callbacks are called
with an empty payload, and every loop also looks by itself now and then.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql

from pgnexus.backoff import LAST, backoff
from pgnexus.db.connection import Connection, connect, display, sever
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

Callback = Callable[[str], None]


class _NoEcho(Exception):
    """LISTEN was accepted, but a NOTIFY from another connection does not arrive."""


class Listener:
    """Calls back for every NOTIFY on the subscribed channels; one connection for a whole process.

    When it has connected, another connection (to ``probe_url``, by default its own URL) sends a NOTIFY to
    a private channel. Sent by itself it would come back through a pooler in transaction mode as well,
    and prove nothing. Later, when nothing arrives for ``keepalive`` seconds, it sends one to itself, and a
    connection that gives no answer within ``connect_timeout`` is cut and made anew.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 5.0,
        keepalive: float = 10.0,
        probe_url: str | None = None,
    ) -> None:
        self.url = url
        self.healthy = False
        self._probe_url = probe_url or url
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._callbacks: dict[str, list[Callback]] = {}
        self._on_connected: list[Callable[[], None]] = []
        self._private = f"pgnexus_keepalive_{secrets.token_hex(8)}"
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._faults = 0
        self._warned: str | None = None

    def subscribe(self, channel: str, callback: Callback) -> None:
        """Call ``callback(payload)`` in the event loop for each NOTIFY on ``channel``; before `start`."""
        if self._task is not None:
            raise RuntimeError("subscribe before start")
        self._callbacks.setdefault(channel, []).append(callback)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call it whenever the listener has connected, first or anew: to what may be another server; before `start`."""
        self._on_connected.append(callback)

    async def start(self) -> None:
        """Connect; returns when it listens, or when the first try failed and it goes on trying."""
        self._task = asyncio.create_task(self._run(), name="listener")
        await self._tried.wait()

    async def stop(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.healthy = False

    async def _run(self) -> None:
        while True:
            try:
                async with self._listening() as connection:
                    self._found()
                    await self._serve(connection)
            except _NoEcho:
                self._lost(
                    "no NOTIFY arrives there: a pooler in transaction mode? Set listen_url to the server "
                    "itself; until then everything works by polling, more slowly"
                )
                await asyncio.sleep(6 * self._keepalive)
            except (psycopg.Error, DatabaseUnavailable, OSError) as error:
                self._lost(str(error))
                await asyncio.sleep(backoff(self._faults))
                self._faults += 1
            except Exception as error:
                self._lost(f"{type(error).__name__}: {error}")
                log.exception("the listener failed, goes on")
                await asyncio.sleep(LAST)

    def _lost(self, why: str) -> None:
        if self._warned is None:
            log.warning("cannot listen at %s: %s", display(self.url), why)
        self._warned = why
        self.healthy = False
        self._tried.set()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Connection]:
        connection = await connect(
            self.url, timeout=self._connect_timeout, application_name="pgnexus listener"
        )
        try:
            await self._run_on(connection, _statement("LISTEN {}", self._private))
            await self._check_hearing(connection)
            for channel in self._callbacks:
                await self._run_on(connection, _statement("LISTEN {}", channel))
            yield connection
        finally:
            self.healthy = False
            # Cut first: closing politely, or cancelling a query, would ask a peer that may hang.
            sever(connection)
            await connection.close()

    async def _serve(self, connection: Connection) -> None:
        while True:
            async for notify in connection.notifies(timeout=self._keepalive):
                self._dispatch(notify.channel, notify.payload)
            await self._notify(connection)

    async def _check_hearing(self, listening: Connection) -> None:
        """See that what others send arrives, before anything is listened to in earnest.

        A pooler in transaction mode takes every LISTEN, and leaves it on a connection of its own: whoever is given
        that next would be sent all our NOTIFYs, and keep them.
        """
        sender = await connect(self._probe_url, timeout=self._connect_timeout)
        try:
            await self._notify(sender)
        finally:
            await sender.close()
        heard = [_ async for _ in listening.notifies(timeout=self._connect_timeout, stop_after=1)]
        if not heard:
            await self._run_on(listening, _statement("UNLISTEN {}", self._private))  # fails if it only hangs
            raise _NoEcho

    async def _notify(self, connection: Connection) -> None:
        async with _deadline(connection, self._connect_timeout):
            await connection.execute(load("notify"), {"channel": self._private, "payload": ""})

    async def _run_on(self, connection: Connection, statement: sql.Composed) -> None:
        async with _deadline(connection, self._connect_timeout):
            await connection.execute(statement)

    def _found(self) -> None:
        if self._warned is not None:
            log.info("listening again at %s", display(self.url))
        self._warned = None
        self._faults = 0
        self.healthy = True
        self._tried.set()
        for callback in self._on_connected:
            callback()
        for channel in self._callbacks:
            self._dispatch(channel, "")

    def _dispatch(self, channel: str, payload: str) -> None:
        for callback in self._callbacks.get(channel, ()):
            try:
                callback(payload)
            except Exception:
                log.exception("a callback for %s failed", channel)


@asynccontextmanager
async def _deadline(connection: Connection, seconds: float) -> AsyncIterator[None]:
    guard = asyncio.get_running_loop().call_later(seconds, sever, connection)
    try:
        yield
    finally:
        guard.cancel()


def _statement(text: str, channel: str) -> sql.Composed:
    return sql.SQL(text).format(sql.Identifier(channel))
