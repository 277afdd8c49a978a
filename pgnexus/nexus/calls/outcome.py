"""Nexus side, the end of the step `route_llm`: what became of a request on its way through its candidates."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from pgnexus.errors import ProviderError
from pgnexus.messages import Usage
from pgnexus.nexus.books.attempt import Attempt
from pgnexus.nexus.selection import Candidate
from pgnexus.providers.provider import Completion


@dataclass(frozen=True, slots=True)
class Held:
    """The request waits without a slot in ``scope`` until there is room again, in ``retry_in`` seconds if known."""

    scope: str
    retry_in: float | None = None


@dataclass(frozen=True, slots=True)
class RouteOutcome:
    """How a request ended: with a completion, an error, or held, and never two of these.

    ``candidate`` is the one that answered, or whose error this is. ``retry_after`` is the smallest wait in
    seconds after which a candidate may be asked again; None when one of them named none.
    """

    completion: Completion | None = None
    error: ProviderError | None = None
    held: Held | None = None
    candidate: Candidate | None = None
    attempts: tuple[Attempt, ...] = ()
    retry_after: float | None = None
    cached: bool = False
    shared: bool = False

    @property
    def retryable(self) -> bool:
        return self.error is not None and self.error.retryable

    @property
    def estimated(self) -> bool:
        """Whether a part of usage and cost is no vendor's own figure."""
        return any(attempt.estimated for attempt in self.attempts)

    @property
    def usage(self) -> Usage:
        """The tokens of all attempts together."""
        if len(self.attempts) == 1:
            return self.attempts[0].usage
        return Usage(
            **{
                name: sum(getattr(attempt.usage, name) for attempt in self.attempts)
                for name in Usage.model_fields
            }
        )

    @property
    def cost(self) -> Decimal | None:
        """The cost of all attempts that used tokens; None when one of them has no known price."""
        if self.cached or self.shared:
            return Decimal(0)
        costs = [
            attempt.cost
            for attempt in self.attempts
            if attempt.usage.total_tokens or attempt.cost is not None
        ]
        known = [cost for cost in costs if cost is not None]
        return sum(known, Decimal(0)) if costs and len(known) == len(costs) else None
