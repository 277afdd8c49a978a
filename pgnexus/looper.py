"""Beside every step of a request: one loop that wakes by NOTIFY or timer, starts and stops cleanly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pgnexus.backoff import backoff
from pgnexus.errors import DatabaseUnavailable

log = logging.getLogger(__name__)


class Outage:
    """What the loops of a process say of a database that is away: once for all of them, and once when it is back."""

    def __init__(self) -> None:
        self._waiting: set[Looper] = set()

    def begins(self, looper: Looper, error: DatabaseUnavailable) -> None:
        if not self._waiting:
            log.warning("waits for the database: %s", error)
        self._waiting.add(looper)

    def ends(self, looper: Looper) -> None:
        if looper in self._waiting:
            self._waiting.discard(looper)
            if not self._waiting:
                log.warning("the database is back")

    def forget(self, looper: Looper) -> None:
        """It stopped, and waits for nothing."""
        self._waiting.discard(looper)


_OUTAGE = Outage()


class Looper:
    """Calls ``work`` again and again until stopped.

    ``work`` returns 0 for "again at once", n for "again in n seconds at the latest", None for "when woken,
    or after ``poll_interval``". A wake-up during the work is kept for the next round. Faults never end
    the loop: it backs off with jitter from 0.1 to 5 s, and says so, for an outage once.
    """

    def __init__(
        self, name: str, work: Callable[[], Awaitable[float | None]], *, poll_interval: float
    ) -> None:
        self.name = name
        self._work = work
        self._poll_interval = poll_interval
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._faults = 0

    def start(self) -> None:
        """Begin, in the running event loop; the first round comes at once."""
        if self._task is not None:
            raise RuntimeError(f"{self.name}: already started")
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name=self.name)

    def wake(self) -> None:
        """Have the work done now, or once more when it is under way; from any thread."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is None or self._loop is running:
            self._woken.set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    async def stop(self) -> None:
        """Let the round under way finish, then end; being cancelled meanwhile cancels that round."""
        self._stopping.set()
        self._woken.set()
        try:
            if self._task is not None:
                await self._task
        finally:
            _OUTAGE.forget(self)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                pause = await self._work()
            except DatabaseUnavailable as error:
                await self._after_outage(error)
            except Exception:
                self._faults += 1
                log.exception("%s: failed, goes on", self.name)
                await _wait(self._stopping, backoff(self._faults))
            else:
                self._after_success()
                if pause is None:
                    pause = self._poll_interval
                if pause > 0 and not self._stopping.is_set():
                    await _wait(self._woken, pause)
                else:
                    await asyncio.sleep(0)  # others run, too

    def _after_success(self) -> None:
        _OUTAGE.ends(self)
        self._faults = 0

    async def _after_outage(self, error: DatabaseUnavailable) -> None:
        _OUTAGE.begins(self, error)
        self._faults += 1
        await _wait(self._stopping, backoff(0))
        if not self._stopping.is_set():  # a wake-up says that the listener has the database back
            await _wait(self._woken, backoff(self._faults))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
