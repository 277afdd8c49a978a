"""Nexus side, before T2: fair shares of a worker's slots, when one agent's flood would keep the others waiting.

Lanes are first come, first served, and as long as slots are free nothing else is needed. When a worker has none left
and one agent holds more of them than its share, the worker looks at what is newly sent to the lanes: messages of
agents that hold less than theirs leave the lanes and are parked in a line of their own. From then on that line and
the lanes take turns at the slots that become free, as if the lanes were one more agent. The flood itself stays
where it is, so that its size costs nothing.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from typing import Any

import psycopg
from pydantic_core import to_json

from pgnexus.db.connection import is_data_fault
from pgnexus.db.database import Database
from pgnexus.flow.registry import Registry
from pgnexus.messages import REQUEST_QUEUES
from pgnexus.nexus.settlement import Claim

log = logging.getLogger(__name__)

_PAUSE = 0.25  # seconds between looks at what is newly sent
_SHORT_PAUSE = 0.05  # the same while a look does not reach the end
_MOST = 2000  # messages of a lane in one look
_MANY = 500  # in one look, so that there are probably more; fewer large ones are not worth the hurry
_OVERLAP = 200  # messages that are looked at again: they may have been committed in another order
_BATCH = 500  # messages that are let past at a time, or as many as there are slots
_MOST_FOUND = 100_000  # messages that are remembered, so that all of them are
_MOST_SHARERS = 200
_LANES = {name: lane for lane, name in enumerate(REQUEST_QUEUES.values())}
_CROWDED = 1.25  # times its share that an agent holds, so that others are let past


class Shares:
    """Who holds how many slots, and who is to be let past."""

    def __init__(self, db: Database, registry: Registry, slots: int, *, interval: float) -> None:
        self._db = db
        self._registry = registry
        self._slots = slots
        self._interval = interval
        self._holds: Counter[str] = Counter()
        self._fair = float(slots)
        self._sharers: set[tuple[int, str]] = set()  # (lane, agent) of those in the line
        self._found: dict[tuple[int, str], dict[int, None]] = {}  # by lane and agent: messages to be let past
        self._after: dict[str, int] = {}  # by lane, the message behind which the next look begins
        self._news = True
        self._looked_at = float("-inf")
        self._pause = _PAUSE
        self._credit = 0.0

    def began(self, claim: Claim) -> None:
        """A request of its agent holds a slot."""
        self._holds[claim.told("agent_id") or ""] += 1

    def ended(self, claim: Claim) -> None:
        """It holds it no more."""
        agent = claim.told("agent_id") or ""
        self._holds[agent] -= 1
        if not self._holds[agent]:
            del self._holds[agent]

    def heard(self) -> None:
        """Something was newly sent to the lanes."""
        self._news = True

    def pause(self) -> float | None:
        """Seconds until the next look; None when there is no news to look at."""
        return max(self._looked_at + self._pause - time.monotonic(), 0.01) if self._news else None

    def turns(self, free: int, others: int) -> int:
        """How many of the free slots are for the line: an equal part for each agent in it and for the lanes."""
        lanes, usable = (1, free) if others <= 0 else (3, others)
        waiting = {agent for lane, agent in self._sharers if lane < lanes and self._holds[agent] < self._fair}
        if not waiting:
            return 0
        self._credit += usable * len(waiting) / (len(waiting) + 1)
        turns = min(int(self._credit), usable)
        self._credit = min(self._credit - turns, 1.0)
        return turns

    async def look(self) -> bool:
        """While no slot is free: find those who are crowded out; whether any were let into the line."""
        now = time.monotonic()
        if now < self._looked_at + (self._pause if self._news else self._interval):
            return False
        self._looked_at, self._news = now, False
        await self._refresh()
        params = {"after": to_json(self._after).decode(), "limit": _MOST}
        rows = await self._db.query("look_ahead", params)
        for row in rows:
            self._after[row.lane] = max(row.last - _OVERLAP, self._after.get(row.lane, 0))
        agents = self._holds.keys() | {row.agent_id for row in rows} | {agent for _, agent in self._found}
        self._fair = self._slots / max(len(agents), 1)
        if max(self._holds.values(), default=0) > self._fair * _CROWDED and len(agents) > 1:
            self._remember(rows)
        else:
            self._found.clear()
        behind = any(row.seen >= _MANY for row in rows)
        self._pause = _SHORT_PAUSE if behind else _PAUSE
        self._news = behind or bool(self._found)
        return await self._let_past()

    def _remember(self, rows: list[Any]) -> None:
        room = _MOST_FOUND - sum(map(len, self._found.values()))
        for row in rows:
            if room > 0 and self._holds[row.agent_id] <= self._fair * _CROWDED:
                ids = self._found.setdefault((_LANES[row.lane], row.agent_id), {})
                ids |= dict.fromkeys(row.msg_ids[:room])
                room -= len(row.msg_ids)

    async def _refresh(self) -> None:
        """See who is still in the line."""
        if self._sharers:
            rows = await self._db.query("sharers", {"limit": _MOST_SHARERS})
            self._sharers = {(row.lane, row.agent_id) for row in rows}

    def told(self) -> None:
        """There is somebody in the line, who it is the next look will tell."""
        if not self._sharers:
            self._sharers = {(0, "")}
            self._news = True

    def emptied(self) -> None:
        """There is nobody in the line."""
        self._sharers.clear()
        self._credit = 0.0

    async def _let_past(self) -> bool:
        """Have agents that are found, and have nobody in the line, wait there; a batch of each at a time."""
        next_up = [who for who in self._found if who not in self._sharers]
        most = max(self._slots, _BATCH) // max(len(next_up), 1) + 1
        parked = 0
        for name, lane in _LANES.items():
            mine = [who for who in next_up if who[0] == lane]
            ids = [msg_id for who in mine for msg_id in self._next(who, most)]
            if ids:
                count = await self._divert(name, ids)
                self._sharers |= set(mine) if count else set()
                parked += count
        return parked > 0

    def _next(self, who: tuple[int, str], most: int) -> list[int]:
        ids = self._found[who]
        batch = list(itertools.islice(ids, most))
        for msg_id in batch:
            del ids[msg_id]
        if not ids:
            del self._found[who]
        return batch

    async def _divert(self, lane: str, msg_ids: list[int]) -> int:
        params = {"worker_id": self._registry.instance_id(), "lane": lane, "msg_ids": msg_ids}
        try:
            [answer] = await self._db.query("divert", params)
        except psycopg.Error as error:
            if not is_data_fault(error):
                raise
            log.debug("queue %s: some are not let past others: %s", lane, error)  # their turn will tell which
            return 0
        return int(answer.parked)
