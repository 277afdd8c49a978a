"""Nexus side, for whoever asks why: each model that was considered for a request, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgnexus.messages import Complexity
from pgnexus.nexus.selection.candidate import Candidate
from pgnexus.nexus.selection.conditions import Standing
from pgnexus.policy import Order, RouteSettings
from pgnexus.providers.models import ModelCard


@dataclass(frozen=True, slots=True)
class Considered:
    """A model that was considered: its place in the order from 1, or why it is not asked now.

    ``origin`` says how it came to be considered, ``value`` by what it is ordered, in words ("unknown" too).
    """

    candidate: Candidate
    position: int | None
    origin: str
    value: str
    why_out: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How the models for a request were chosen.

    ``looked_for`` are the names of the routes that would hold, the most particular first; ``route`` is the one that
    does, "" for a request that names its model. ``others`` are the vendors that were not considered, with the reason.
    """

    complexity: Complexity
    task_type: str | None
    agent_id: str | None
    looked_for: tuple[str, ...]
    route: str
    from_settings: bool
    rules: RouteSettings
    considered: tuple[Considered, ...]
    others: tuple[tuple[str, str], ...]
    refusal: str | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; models are written "provider/model"."""
        considered = [
            {
                "model": str(one.candidate),
                "position": one.position,
                "origin": one.origin,
                "value": one.value or None,
                "why_out": one.why_out,
            }
            for one in self.considered
        ]
        return {
            "complexity": self.complexity,
            "task_type": self.task_type,
            "agent_id": self.agent_id,
            "looked_for": list(self.looked_for),
            "route": self.route or None,
            "from_settings": self.from_settings,
            "rules": self.rules.model_dump(exclude={"models"}),
            "considered": considered,
            "others": [{"provider": name, "why_out": why} for name, why in self.others],
            "refusal": self.refusal,
        }


def value_in_words(order: Order, card: ModelCard | None, standing: Standing) -> str:
    """By what a candidate is ordered, as people write it; "" where it is its place in the route."""
    if order == "price":
        price = None if card is None else card.price
        return "price unknown" if price is None else f"${price:.4g} a million tokens"
    if order == "latency":
        return "latency unknown" if standing.latency_ms is None else f"{standing.latency_ms:,.0f} ms"
    if order == "success_rate":
        rate = standing.success_rate
        return "success unknown" if rate is None else f"{rate:.1%} successful"
    return ""
