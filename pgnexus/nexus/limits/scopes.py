"""Nexus side, before each provider call: which limits and budgets of the settings it comes under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel

from pgnexus.settings import Settings

Family = Literal["rate", "slots", "budget"]
Unit = Literal["calls", "tokens", "money"]

_FAMILIES: Mapping[str, Family] = {
    "requests_per_minute": "rate",
    "tokens_per_minute": "rate",
    "concurrent_calls": "slots",
    "usd_per_day": "budget",
    "usd_per_month": "budget",
    "tokens_per_day": "budget",
    "tokens_per_month": "budget",
}
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One amount of one scope: what calls that come under it may use together."""

    scope: str
    kind: str
    amount: Decimal
    family: Family
    key: tuple[str, str] = field(init=False)
    unit: Unit = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.scope, self.kind))
        unit = {"usd": "money", "tokens": "tokens"}.get(self.kind.split("_")[0], "calls")
        object.__setattr__(self, "unit", unit)

    def used(self, tokens: Decimal | None, cost: Decimal | None) -> Decimal | None:
        """What a call has taken from it in the end; None when nobody knows, or it was clear before."""
        return cost if self.unit == "money" else tokens if self.unit == "tokens" else None

    def __str__(self) -> str:
        return f"{self.kind} of {self.amount:f}"


class Rules:
    """The rules of the settings, by the scopes that a call belongs to."""

    def __init__(self, settings: Settings) -> None:
        self._groups = [
            {scope: _amounts(row) for scope, row in rows.items()}
            for rows in (settings.limits, settings.budgets)
        ]
        self._by_scope: dict[str, tuple[Rule, ...]] = {}
        self._by_call: dict[tuple[str, str, str | None, str | None], tuple[Rule, ...]] = {}

    def __bool__(self) -> bool:
        return any(amounts for group in self._groups for amounts in group.values())

    def of_call(self, provider: str, model: str, key: str | None, agent_id: str | None) -> tuple[Rule, ...]:
        """The rules that one call comes under."""
        call = (provider, model, key, agent_id)
        if (found := self._by_call.get(call)) is None:
            scopes = [provider, f"{provider}/{model}"]
            if key is not None:
                scopes.append(f"key:{key}")
            if agent_id is not None:
                scopes.append(f"agent:{agent_id}")
            found = tuple(rule for scope in scopes for rule in self.of_scope(scope))
            if len(self._by_call) >= _MOST_REMEMBERED:  # agents come and go
                self._by_call.clear()
            self._by_call[call] = found
        return found

    def of_scope(self, scope: str) -> tuple[Rule, ...]:
        """The rules of one scope; an agent without a row of its own, in limits or in budgets, has ``agent:*`` there."""
        if (found := self._by_scope.get(scope)) is None:
            common = "agent:*" if scope.startswith("agent:") else scope
            rows = [group.get(scope, group.get(common, [])) for group in self._groups]
            found = tuple(
                Rule(scope, kind, amount, _FAMILIES[kind]) for amounts in rows for kind, amount in amounts
            )
            if len(self._by_scope) >= _MOST_REMEMBERED:
                self._by_scope.clear()
            self._by_scope[scope] = found
        return found

    def configured(self) -> Iterable[tuple[str, str, Decimal]]:
        """(scope, kind, amount) of every row, as the settings have it."""
        return (
            (scope, kind, amount)
            for group in self._groups
            for scope, amounts in group.items()
            for kind, amount in amounts
        )


def _amounts(row: BaseModel) -> list[tuple[str, Decimal]]:
    given = [(name, getattr(row, name)) for name in type(row).model_fields]
    return [(name, Decimal(str(amount))) for name, amount in given if amount is not None]
