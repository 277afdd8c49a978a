"""Nexus side, before and after each provider call: what is asked of the gate, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from pgnexus.messages import Priority
from pgnexus.nexus.attempt import Charge, Estimate
from pgnexus.nexus.limits.scopes import Rule


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


class Giver(Protocol):
    """Who gives permits, and takes back what they leave."""

    def settle(self, permit: Permit, tokens: int | None, cost: Decimal | None) -> tuple[Charge, ...]: ...

    def cancel(self, permit: Permit) -> None: ...


class Permit:
    """The right to make one call. Whoever has it ends it, by `settle` or by `cancel`, whatever happens.

    ``charges`` is what is set aside in budgets, empty when none applies; ``takings`` is what each rule gave.
    """

    __slots__ = ("_giver", "_settled", "charges", "epoch", "takings")

    def __init__(
        self,
        giver: Giver | None = None,
        takings: tuple[tuple[Rule, Decimal], ...] = (),
        charges: tuple[Charge, ...] = (),
        epoch: int = 0,
    ) -> None:
        self.takings = takings
        self.charges = charges
        self.epoch = epoch
        self._giver = giver
        self._settled: tuple[Charge, ...] | None = None

    def settle(self, tokens: int | None, cost: Decimal | None) -> tuple[Charge, ...]:
        """The call is over and has used this much; None: nobody knows, so what was set aside counts.

        Returns the charges for the books. Asked again, it returns the same and has no further effect.
        """
        if self._settled is None:
            self._settled = () if self._giver is None else self._giver.settle(self, tokens, cost)
        return self._settled

    def cancel(self) -> None:
        """The call was never made: all that was set aside is free again. Without effect once settled."""
        if self._settled is None:
            self._settled = ()
            if self._giver is not None:
                self._giver.cancel(self)


UNLIMITED = Permit()
