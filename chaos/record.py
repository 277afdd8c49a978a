"""What was done to the system in a round, and what that excuses. Times are those of time.monotonic()."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from chaos.account import ProviderCall

_MOMENT = 1.0  # seconds around a fault in which its effects may show


@dataclass
class Struck:
    """One fault, from its first effect until it was healed; ``targets`` names processes, empty: all of them."""

    fault: str
    began: float
    healed: float
    targets: tuple[str, ...] = ()

    def at(self, begin: float, end: float) -> bool:
        """Whether it lay within this time, or just beside it."""
        return self.began - _MOMENT <= end and begin <= self.healed + _MOMENT


# Which faults do what: kill a process, keep one from doing anything, keep it from the database.
KILLS = ("kill worker", "kill provider", "kill caller")
FREEZES = ("freeze",)
OUTAGES = ("stop database", "kill database", "restart database", "cut connections", "kill pooler")
NETWORK = ("hang", "reset", "delay", "mute")
CRASHES = ("kill database",)


@dataclass
class Record:
    """All faults of one round."""

    struck: list[Struck] = field(default_factory=list)
    late: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # of workers, by their logs
    last_signs: dict[str, float] = field(default_factory=dict)  # of life that workers gave

    @contextmanager
    def striking(self, fault: str, *targets: str) -> Iterator[Struck]:
        """Note a fault for as long as the block lasts."""
        one = Struck(fault, time.monotonic(), float("inf"), targets)
        self.struck.append(one)
        try:
            yield one
        finally:
            one.healed = time.monotonic()

    @property
    def crashed(self) -> bool:
        """Whether PostgreSQL lost what nobody waited for."""
        return any(one.fault in CRASHES for one in self.struck)

    def orphaned(self, call: ProviderCall) -> bool:
        """Whether others may have been given the call's slot, and its request, before it was over."""
        begin, end = call.began, call.over
        return self.was_late(call.worker, begin, end) or self._hit(
            (*FREEZES, *NETWORK), call.worker, begin, end
        )

    def was_late(self, worker: str, begin: float, end: float) -> bool:
        """Whether this worker's lease had run out at any time in between."""
        return any(since <= end and begin <= until for since, until in self.late.get(worker, ()))

    def note_lost(self, call: ProviderCall, *, charged: bool) -> bool:
        """Whether the note of a call may be lost: its worker was killed just after it began (if no budget pays for it),
        or before it could store it, for the database was away, or the wire to it.
        """
        kills = [
            one.began
            for one in self.struck
            if one.fault == "kill worker" and call.worker in one.targets and one.healed >= call.began
        ]
        if not kills:
            return False
        silent = self.last_signs.get(call.worker, call.began) < call.over + _MOMENT
        fresh = any(began - call.began < 0.5 for began in kills)
        cut_off = any(self._cut_off(call.worker, call.over, began) for began in kills)
        return silent or cut_off or (fresh and not charged)

    def _cut_off(self, worker: str, since: float, until: float) -> bool:
        """Whether one fault after the other kept this worker from the database all the time."""
        kinds = (*FREEZES, *OUTAGES, *NETWORK)
        spans = sorted(
            (one.began - _MOMENT, one.healed + _MOMENT)
            for one in self.struck
            if one.fault in kinds and (not one.targets or worker in one.targets)
        )
        for begin, end in spans:
            if begin <= since:
                since = max(since, end)
        return since >= until

    def killed(self, worker: str, begin: float, end: float) -> bool:
        return self._hit(("kill worker",), worker, begin, end)

    def frozen(self, worker: str, begin: float, end: float) -> bool:
        return self._hit(FREEZES, worker, begin, end)

    def provider_killed(self, begin: float, end: float) -> bool:
        return any(one.fault == "kill provider" and one.at(begin, end) for one in self.struck)

    def away(self, worker: str, begin: float, end: float) -> bool:
        """Whether this worker may have missed the database in this time."""
        return self._hit((*OUTAGES, *NETWORK), worker, begin, end)

    def _hit(self, faults: tuple[str, ...], worker: str, begin: float, end: float) -> bool:
        return any(
            one.fault in faults and (not one.targets or worker in one.targets) and one.at(begin, end)
            for one in self.struck
        )
