"""Nexus side, before each provider call: it is noted as in flight, so that it is paid for if this worker dies.

The notes of many calls are one row, stored at once and without waiting for the disk. They go when the calls are in
the books. Of a worker that is dead nexus.bury makes `unknown` attempts out of what is left of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID

import psycopg
from pydantic_core import to_json

from pgnexus.backoff import backoff
from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.nexus.books.attempt import Charge, Estimate
from pgnexus.printable import one_line

log = logging.getLogger(__name__)

_MOST_A_ROW: Final = 500
_GATHER: Final = 0.01  # seconds in which calls gather that nobody waits for; instant ones have ended by then
_LINGER: Final = 1.0  # seconds until rows that are done with go, when no others come
_LAST_BACKOFF: Final = 1.0
_OF_THE_MOMENT: Final = ("40", "55", "57")  # classes of SQLSTATE: deadlocks, locks, cancelled statements

_Note = tuple[Any, ...]
_Key = tuple[UUID, int, int]  # a request, how often it was taken up, and the number of the call then


class Named(Protocol):
    """Whoever is asked."""

    @property
    def provider(self) -> str: ...

    @property
    def model(self) -> str: ...


class Reservation:
    """One call in flight."""

    __slots__ = ("_began_at", "_candidate", "_charges", "_estimate", "ended", "key", "row")

    def __init__(
        self,
        row: _Row,
        key: _Key,
        candidate: Named,
        estimate: Callable[[], Estimate],
        charges: Sequence[Charge],
    ) -> None:
        self.row = row
        self.key = key
        self.ended = False
        self._began_at = datetime.now(UTC)
        self._candidate = candidate
        self._estimate = estimate
        self._charges = charges

    def note(self) -> _Note:
        """What nexus.reserve keeps of it; raises what the estimate does."""
        expected, candidate = self._estimate(), self._candidate
        return (
            *self.key,
            self._began_at,
            candidate.provider,
            candidate.model,
            expected.prompt_tokens,
            expected.completion_tokens,
            expected.cost,
            [charge.to_json() for charge in self._charges],
        )

    async def stored(self) -> None:
        """Wait until the note is in the database; raises when the database refuses it."""
        await self.row.stored.wait()
        if self.row.fault is not None:
            raise self.row.fault

    def end(self) -> bool:
        """The call is in the books, or was never made; whether it was the last one of a row that is stored."""
        self.ended = True
        self.row.open -= 1
        if self.row.open == 0 and not self.row.sent:
            self.row.calls.clear()
        return self.row.open == 0 and self.row.sent


class _Row:
    """The calls of one flush."""

    __slots__ = ("calls", "fault", "lost", "number", "open", "sent", "stored", "urgent")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls: list[Reservation] = []
        self.open = 0
        self.sent = False
        self.urgent = False  # somebody waits until it is stored
        self.lost = False
        self.stored = asyncio.Event()
        self.fault: Exception | None = None


class Reservations:
    """This worker's calls in flight, and their notes in the database.

    A database that is away holds up only those who wait for `Reservation.stored`. What is noted meanwhile is no more
    than what is in flight: no call is settled without the database either.
    """

    def __init__(self, db: Database, instance_id: UUID) -> None:
        self._db = db
        self._instance_id = instance_id
        self._open: dict[_Key, Reservation] = {}
        self._rows: deque[_Row] = deque()  # not stored yet; the last one is being filled
        self._numbers = 0
        self._done: list[int] = []  # rows whose calls are all in the books
        self._lost: list[int] = []  # rows whose calls others have been given
        self._flushing: asyncio.Task[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._closing = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Calls that are not in the books yet."""
        return len(self._open)

    def open(
        self,
        request_id: UUID,
        attempt: int,
        number: int,
        candidate: Named,
        estimate: Callable[[], Estimate],
        charges: Sequence[Charge],
    ) -> Reservation:
        """Note a call: ``attempt`` counts how often its request was taken up, ``number`` the calls of that time.

        ``estimate`` is asked when the note is stored, which the end of an instant call forestalls.
        """
        row = self._filling()
        key = (request_id, attempt, number)
        reservation = Reservation(row, key, candidate, estimate, charges)
        row.calls.append(reservation)
        row.open += 1
        if charges and not row.urgent:
            row.urgent = True
            # what is noted in this turn of the loop goes together
            asyncio.get_running_loop().call_soon(self._start)
        if (before := self._open.get(reservation.key)) is not None:
            self._end(before)  # given back uncounted and taken again, before word came that it is booked
        self._open[reservation.key] = reservation
        return reservation

    def booked(self, calls: Iterable[_Key]) -> None:
        """These calls are in the books, each (request_id, attempt, number): their settlement is committed."""
        for call in calls:
            reservation = self._open.pop(call, None)
            if reservation is not None:
                self._end(reservation)

    def withdraw(self, reservation: Reservation) -> None:
        """The call was never made."""
        if self._open.pop(reservation.key, None) is not None:
            self._end(reservation)

    def forget(self) -> None:
        """This worker was given up and others have its work: what it had in flight goes into the books as unknown.

        A call that is settled all the same takes that place.
        """
        for reservation in self._open.values():
            row = reservation.row
            if not row.lost:
                row.lost = True
                if row.sent:
                    self._lost.append(row.number)
        self._open.clear()
        if self._rows:  # what comes now is none of that
            self._rows.append(self._next_row())
        self._linger()

    async def close(self) -> None:
        """Store what is left to be stored, unless the database is away; what is still in flight is `bury`'s then."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._closing.set()
        self._start()
        while self._flushing is not None:
            await asyncio.wait([self._flushing])

    def _filling(self) -> _Row:
        if not self._rows or len(self._rows[-1].calls) >= _MOST_A_ROW:
            self._rows.append(self._next_row())
            if self._flushing is None and len(self._rows) == 1:
                asyncio.get_running_loop().call_later(_GATHER, self._start)
        return self._rows[-1]

    def _next_row(self) -> _Row:
        self._numbers += 1
        return _Row(self._numbers)

    def _end(self, reservation: Reservation) -> None:
        if reservation.end():
            self._done.append(reservation.row.number)
            self._linger()

    def _linger(self) -> None:
        """See that what is done with goes, also when no more calls come."""
        if self._lingering is None and self._flushing is None:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER, self._lingered)

    def _lingered(self) -> None:
        self._lingering = None
        self._start()

    def _start(self) -> None:
        if self._flushing is None and (self._rows or self._done or self._lost):
            self._flushing = asyncio.create_task(self._flush(), name="reservations")
            self._flushing.add_done_callback(self._flushed)

    def _flushed(self, task: asyncio.Task[None]) -> None:
        self._flushing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("reservations: failed in our own code", exc_info=error)
        if self._closing.is_set() or any(row.urgent for row in self._rows):
            self._start()
        elif self._rows:
            asyncio.get_running_loop().call_later(_GATHER, self._start)
        elif self._done or self._lost:
            self._linger()

    async def _flush(self) -> None:
        """Store row after row, and with the first of them drop what is done with."""
        while True:
            row = self._rows.popleft() if self._rows else _Row(0)
            row.sent = True
            row.fault = await self._store(row.number, _notes(row))
            row.calls.clear()
            row.stored.set()
            if row.lost:
                self._lost.append(row.number)
            if not self._rows:
                return

    async def _store(self, number: int, notes: list[_Note]) -> Exception | None:
        """Why the notes could not be stored, if so; an outage is waited out."""
        done, self._done = self._done, []
        lost, self._lost = self._lost, []
        if not (notes or done or lost):
            return None
        params = {
            "instance_id": self._instance_id,
            "number": number,
            "calls": to_json(notes).decode() if notes else None,
            "done": done,
            "lost": lost,
        }
        for tries in range(1, 1_000_000):
            try:
                await self._db.query("reserve", params)
                return None
            except DatabaseUnavailable as error:  # said again, it changes nothing
                if self._closing.is_set():
                    return error
                await self._wait(tries)
            except psycopg.Error as error:
                if self._closing.is_set() or (error.sqlstate or "")[:2] not in _OF_THE_MOMENT:
                    log.error("calls in flight are not noted: %s", one_line(error))
                    return error
                await self._wait(tries)
        raise AssertionError("unreachable")

    async def _wait(self, tries: int) -> None:
        seconds = backoff(tries, last=_LAST_BACKOFF)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


def _notes(row: _Row) -> list[_Note]:
    """Of the calls that have not ended. One that cannot be estimated goes without; its neighbours must not."""
    notes = []
    for call in row.calls:
        if not call.ended:
            try:
                notes.append(call.note())
            except Exception:
                log.exception("request %s: its call in flight is not noted", call.key[0])
    return notes
