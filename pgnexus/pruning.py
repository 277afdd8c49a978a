"""Beside every request: what is older than it need be goes, a slice at a time, so that nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pgnexus.db.database import Database
from pgnexus.looper import Looper

log = logging.getLogger(__name__)

_SLICE: Final = 500  # rows that one transaction looks at
_REST: Final = 2.0  # times as long as a slice took until the next one: others use the disk, too
_TRIES: Final = 30  # for a lock that is not to be had at once, before it is left for the next round
_BUSY: Final = 0.2  # seconds until the first of them; then longer
_EVERY: Final = 600.0  # seconds between two rounds of one part, whichever processes make them
_LOOKS: Final = 60.0  # seconds between looks whether it is time


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of thing that can be pruned; ``keep`` is for how many seconds after its end, None for ever."""

    name: str
    query: str
    keep: float | None
    params: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""  # what a user calls it, who wants only some of them


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, or would go: rows, and about how many bytes they had."""

    what: str
    rows: int
    bytes: int


async def prune(
    db: Database,
    parts: Sequence[Part],
    *,
    dry_run: bool = False,
    rest: float = _REST,
    wanted: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Pruned]:
    """Prune these parts, one after another; what went of each, and each month of results that went as a whole.

    Nothing is held between two slices, so it may be stopped anywhere, and any number may do so at once. Ends early when
    ``wanted`` says no. With ``dry_run`` everything is looked at, and nothing removed.
    """
    skip: list[str] = []  # months that go as a whole, at another time: their rows need not go one by one
    for part in parts:
        if part.keep is None or not wanted():
            continue
        rows = size = 0
        async for found in _slices(db, part, skip, dry_run, rest):
            if getattr(found, "what", None) is not None:
                skip.append(found.what)
                yield Pruned(found.what, found.removed, found.bytes)
            else:
                rows, size = rows + found.removed, size + found.bytes
            if not wanted():
                break
        if part.query != "prune_months":
            yield Pruned(part.name, rows, size)


async def _slices(
    db: Database, part: Part, skip: list[str], dry_run: bool, rest: float
) -> AsyncIterator[Any]:
    after: str | None = ""
    tries = 0
    while after is not None:
        params = {"keep": part.keep, "after": after, "limit": _SLICE, "dry": dry_run, "skip": skip}
        begun = time.monotonic()
        [found] = await db.query(part.query, params | dict(part.params))
        yield found
        after = found.resume
        if getattr(found, "busy", False):
            tries += 1
            if tries == _TRIES:
                month = after.partition(":")[0] or part.name
                log.warning(
                    "%s: stays for now, a transaction that goes on keeps it from being dropped", month
                )
                skip.append(month)
                return
            await asyncio.sleep(_BUSY * min(tries, 10) * random.uniform(0.5, 1.5))
        else:
            await asyncio.sleep((time.monotonic() - begun) * rest)


class Pruner:
    """A loop that prunes what is one side's own, every ten minutes in one of the processes that have it."""

    def __init__(
        self, db: Database, part: str, parts: Sequence[Part], *, every: float = _EVERY, looks: float = _LOOKS
    ) -> None:
        self._db = db
        self._parts = [one for one in parts if one.keep is not None]
        self._turn = {"part": part, "every": every}
        self._looks = looks
        self._waited = False
        self._stopping = False
        self._started = False
        self._looper = Looper(f"pruner of {part}", self._round, poll_interval=looks)

    def start(self) -> None:
        """Begin; where everything is kept for ever there is nothing to do."""
        if self._parts:
            self._started = True
            self._looper.start()

    async def stop(self) -> None:
        self._stopping = True
        if self._started:
            await self._looper.stop()

    async def _round(self) -> float | None:
        if not self._waited:  # whoever lives for a moment only leaves it to others
            self._waited = True
            return random.uniform(0.1, 1.0) * self._looks
        [turn] = await self._db.query("begin_pruning", self._turn)
        if turn.mine:
            async for gone in prune(self._db, self._parts, wanted=lambda: not self._stopping):
                if gone.rows:
                    log.info("pruned %s: %d rows, %d bytes", gone.what, gone.rows, gone.bytes)
        return None
