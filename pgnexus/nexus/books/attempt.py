"""Nexus side, words of the step `route_llm`: one call to one vendor, and what is set aside for it beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from pgnexus.messages import Usage


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call may use at most, as far as one can tell before it; ``cost`` is None where no price is known."""

    prompt_tokens: int
    completion_tokens: int
    cost: Decimal | None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_usage(self) -> Usage:
        """For the books, where nothing better is known."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.tokens,
        )


@dataclass(frozen=True, slots=True)
class Charge:
    """What one call takes from one budget: ``reserved`` before it, ``actual`` after it.

    ``period`` is the first day (ISO date, UTC) of the day or month that it is charged to.
    """

    scope: str
    kind: str
    period: str
    reserved: Decimal
    actual: Decimal | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "scope": self.scope,
            "kind": self.kind,
            "period": self.period,
            "reserved": self.reserved,
            "actual": self.actual,
        }


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to one vendor, for the books; ``outcome`` is "success", "cancelled" or the error's type.

    ``number`` counts the calls of one claim from 1. ``estimated`` says that tokens and cost are not the vendor's
    own: it was left before it had told them.
    """

    provider: str
    model: str
    started_at: datetime
    duration_ms: int
    outcome: str
    usage: Usage
    cost: Decimal | None
    retry_after: float | None = None
    number: int = 1
    error: str | None = None
    estimated: bool = False
    charges: tuple[Charge, ...] = ()
