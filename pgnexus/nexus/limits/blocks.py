"""Nexus side, before each provider call: what this worker holds of one amount, and what it knows of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple

from pgnexus.nexus.limits.scopes import Rule

EXPIRES = 3.0  # seconds; what a frozen worker finds in its memory is not its own any more
SWEEP = 1.0  # seconds; what was not touched for so long goes back
AHEAD = 1.0  # seconds' worth of calls that a block is filled for

_ZERO = Decimal(0)
_ONE = Decimal(1)
_FINEST = Decimal("1e-9")  # more digits would be rounded in sums, and sums be wrong by them
_USUAL_TOKENS = Decimal(1000)  # of a call, until there was one


class Grant(NamedTuple):
    """One row of the answer to a lease; see nexus.lease."""

    n: int
    granted: Decimal
    cap: Decimal | None
    next_in: float
    period: str | None
    since: datetime | None
    ends_in: float | None
    spent: Decimal | None
    most: Decimal | None
    rest: Decimal


@dataclass(slots=True, eq=False)
class Block:
    """``left`` is free for the next calls; below zero it is owed. Times are those of the event loop."""

    rule: Rule
    left: Decimal = _ZERO
    surplus: Decimal = _ZERO  # to be given back, because others wait
    out: int = 0  # calls that have taken from it
    cap: Decimal | None = None  # how many calls to hold on to, because others wait
    period: str | None = None
    since: datetime | None = None
    expires: float = float("-inf")
    ends: float = float("inf")
    leased_at: float = float("-inf")
    swept_at: float = float("-inf")
    used: bool = False  # whether anything was taken since it was swept
    low: Decimal = _ZERO  # the least that was left since it was swept
    fresh: Decimal = _ZERO  # taken since the last lease
    pace: Decimal = _ZERO  # taken in a second, of late
    floor: Decimal = _ZERO  # below this more is fetched
    unit: Decimal | None = None  # what one call takes, of late
    promised: Decimal = _ZERO  # for parked calls that are on their way
    asked: Decimal = _ZERO  # for parked calls that may come
    need: Decimal = _ZERO  # what the first waiting call lacks
    retry_at: float = float("-inf")
    short_until: float = float("-inf")
    most: Decimal | None = None  # of a budget: what might be had beyond `left`, as last heard
    spent: Decimal = _ZERO
    plenty: bool = False  # nobody misses what lies idle here
    heard: int = 0  # the last round in which there was an answer, or a fault
    lost: tuple[int, Decimal] | None = None  # a lease of which no answer came, and what it gave back
    past: bool = False  # nothing is taken from it any more; what comes back to it goes back

    def can_give(self, amount: Decimal, now: float) -> bool:
        return self.left >= amount and now < self.expires

    def take(self, amount: Decimal) -> None:
        self.left = left = self.left - amount
        self.used = True
        self.fresh += amount
        self.out += 1
        if left < self.low:
            self.low = left
        if self.rule.unit == "tokens" and amount != self.unit:
            self.unit = amount if self.unit is None else self.unit + (amount - self.unit) / 16
        if self.promised:
            self.promised = max(self.promised - amount, _ZERO)

    def is_low(self, now: float) -> bool:
        """Whether more should be fetched before it is empty."""
        return self.left < self.floor and now - self.leased_at >= 0.1

    def end(self, amount: Decimal, used: Decimal | None) -> None:
        """A call that had taken ``amount`` is over, and has ``used`` this of it, or nobody knows."""
        self.out -= 1
        if self.rule.family == "slots":
            if self.cap is not None and self.out + self.left >= self.cap:
                self.surplus += amount
            else:
                self.left += amount
        elif self.rule.family == "rate" and used is not None:
            self.left += amount - used

    def cancel(self, amount: Decimal) -> None:
        """A call that had taken ``amount`` was never made."""
        if self.rule.family == "slots":
            self.end(amount, None)
        else:
            self.out -= 1
            self.left += amount

    def sweep(self, now: float) -> None:
        """Set aside for giving back what was not needed since the last time; forget old promises."""
        if self.past:
            self.surplus += self.left
            self.left = _ZERO
            return
        if now - self.swept_at < SWEEP:
            return
        in_use = self.used and self.rule.family != "slots"
        spare = min(self.low, self.left) - (self.pace * Decimal(AHEAD) if in_use else _ZERO)
        if spare > 0 and not (self.used and self.plenty):
            self.surplus += spare
            self.left -= spare
        self.swept_at, self.used, self.low, self.promised = now, False, self.left, _ZERO

    def wanted(self, waiting: Decimal, now: float) -> tuple[Decimal, Decimal, Decimal]:
        """(what its first call lacks, what all its calls lack, the same with what it would have ahead)."""
        elapsed = Decimal(max(now - self.leased_at, 0.01))
        if elapsed < 60:
            self.pace = ((self.pace + self.fresh / elapsed) / 2).quantize(_FINEST)
        else:
            self.pace = _ZERO
        lacking = max(waiting + self.promised + self.asked - self.left, self.need, _ZERO)
        if self.rule.family == "slots":
            spare = (Decimal(self.out) / 2).to_integral_value(ROUND_CEILING) if lacking else _ZERO
        else:
            spare = self.pace * Decimal(AHEAD)
            self.floor = spare / 2
        if not lacking and (not self.fresh or self.surplus > 0):
            spare = _ZERO  # it is idle, or gives back
        ahead = max(spare - max(self.left - waiting - self.promised, _ZERO), _ZERO)
        return self.need, lacking, lacking + ahead

    def item(self, waiting: Decimal, now: float) -> dict[str, Any]:
        """What to ask of nexus.lease for it."""
        self.sweep(now)
        if self.left < 0:  # what is owed is paid before anything is asked for
            self.surplus += self.left
            self.left = _ZERO
        need, lacking, want = self.wanted(waiting, now)
        lost = None
        if self.lost is not None:  # only that, so that it may be said again
            lost, give = self.lost
            need = lacking = want = _ZERO
        else:
            give, self.surplus = self.surplus, _ZERO
        if self.past:
            need = lacking = want = _ZERO
        return {
            "scope": self.rule.scope,
            "kind": self.rule.kind,
            "family": self.rule.family,
            "amount": self.rule.amount,
            "give": give,
            "period": self.period,
            "since": self.since,
            "lost": lost,
            "idle": max(self.left, _ZERO),
            "need": need,
            "waiting": lacking,
            "want": want,
        }

    def fill(self, grant: Grant, waited: Decimal, now: float) -> None:
        """Take in the answer to a lease; ``waited`` is what it lacked when it asked."""
        self.left += grant.granted
        self.low = min(self.low, self.left) if self.used else self.left
        self.cap = grant.cap
        self.fresh = self.asked = _ZERO
        self.leased_at = now
        self.period, self.since = grant.period, grant.since
        if grant.ends_in is not None:
            self.ends = now + grant.ends_in
        self.expires = min(now + EXPIRES, self.ends)
        self.retry_at = now + grant.next_in
        self.short_until = self.retry_at + SWEEP if grant.granted < waited else float("-inf")
        self.plenty = self.left * 8 <= grant.rest
        self.most, self.spent = grant.most, grant.spent or _ZERO
        self.need = _ZERO
        self.lost = None

    def has_news(self) -> bool:
        """Whether the database should hear of it now and then."""
        in_use = self.out > 0 and self.rule.family == "slots" and not self.past
        return bool(self.left or self.surplus or self.lost) or in_use

    def is_empty(self) -> bool:
        """Whether nothing would be lost with it."""
        return not (self.out or self.used or self.asked or self.has_news())

    def room(self, waiting: Decimal) -> int:
        """How many more calls of the usual size it has room for."""
        return max(int((self.left - waiting - self.promised) / self.usual()), 0)

    def usual(self) -> Decimal:
        if self.rule.kind == "tokens_per_minute":
            return max(self.unit if self.unit is not None else _USUAL_TOKENS, _ONE)
        return _ONE

    def unanswered(self, serial: int, give: Decimal) -> None:
        """Nobody knows whether a lease was granted. Of a rate that is soon made up for; else it is cleared up."""
        if self.rule.family != "rate" and self.lost is None:
            self.lost = (serial, give)

    def refused(self, give: Decimal) -> None:
        """The lease was not granted, and nothing was given back."""
        if self.lost is None:
            self.surplus += give
