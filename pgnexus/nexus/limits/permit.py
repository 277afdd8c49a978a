"""Nexus side, before and after each provider call: what is asked of the gate, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from pgnexus.messages import Priority
from pgnexus.nexus.books.attempt import Charge, Estimate
from pgnexus.nexus.limits.blocks import Block


@dataclass(frozen=True, slots=True)
class Ask:
    """One provider call that somebody wants to make; ``key`` names the environment variable of the vendor's key."""

    provider: str
    model: str
    key: str | None
    agent_id: str | None
    priority: Priority
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class OverLimit:
    """Not now: ``scope`` has no room. ``retry_in`` is the wait in seconds after which it pays to ask again."""

    scope: str
    retry_in: float | None


@dataclass(frozen=True, slots=True)
class OverBudget:
    """Not in this day or month: what ``scope`` may spend is spent, or set aside for calls under way."""

    scope: str
    message: str


class Permit:
    """The right to make one call. Whoever has it ends it, by `settle` or by `cancel`, whatever happens.

    ``charges`` is what is set aside in budgets, empty when none applies.
    """

    __slots__ = ("_freed", "_settled", "_takings", "charges")

    def __init__(
        self,
        takings: tuple[tuple[Block, Decimal], ...] = (),
        charges: tuple[Charge, ...] = (),
        freed: Callable[[], None] | None = None,
    ) -> None:
        self.charges = charges
        self._takings = takings
        self._freed = freed  # hears that something came back
        self._settled: tuple[Charge, ...] | None = None

    def settle(self, tokens: int | None, cost: Decimal | None) -> tuple[Charge, ...]:
        """The call is over and has used this much; None: nobody knows, so what was set aside counts.

        A call that used no tokens and has no cost was free. Returns the charges for the books; asked again, the
        same and without further effect.
        """
        if self._settled is None:
            if cost is None and tokens == 0:
                cost = Decimal(0)
            used = None if tokens is None else Decimal(tokens)
            for block, amount in self._takings:
                block.end(amount, block.rule.used(used, cost))
            self._settled = tuple(_charged(charge, used, cost) for charge in self.charges)
            if self._freed is not None:
                self._freed()
        return self._settled

    def cancel(self) -> None:
        """The call was never made: all that was set aside is free again. Without effect once settled."""
        if self._settled is None:
            self._settled = ()
            for block, amount in self._takings:
                block.cancel(amount)
            if self._freed is not None:
                self._freed()


def _charged(charge: Charge, tokens: Decimal | None, cost: Decimal | None) -> Charge:
    used = cost if charge.kind.startswith("usd") else tokens
    actual = charge.reserved if used is None else used
    return Charge(charge.scope, charge.kind, charge.period, charge.reserved, actual)


UNLIMITED = Permit()
