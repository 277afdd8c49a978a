"""Nexus side, an input of the choice of a model: how the candidates do at the moment, and their order by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pgnexus.nexus.selection.candidate import Candidate
from pgnexus.policy import Order
from pgnexus.providers.models import ModelCard


@dataclass(frozen=True, slots=True)
class Standing:
    """How one candidate does; None is unknown, such as of one that was not asked of late.

    ``latency_ms`` is the median of its answers, ``success_rate`` a share of its calls from 0 to 1, and
    ``breaker_open`` the seconds for which it is still left alone.
    """

    latency_ms: float | None = None
    success_rate: float | None = None
    breaker_open: float | None = None


Conditions = Mapping[Candidate, Standing]
"""The standing of the candidates of which there is something to say."""

UNKNOWN: Final = Standing()


def order_value(order: Order, card: ModelCard | None, standing: Standing) -> float | None:
    """By what a candidate is ordered, the smaller the better; None when that is not known."""
    if order == "price":
        return None if card is None or card.price is None else float(card.price)
    if order == "latency":
        return standing.latency_ms
    if order == "success_rate":
        return None if standing.success_rate is None else -standing.success_rate
    return 0.0


def ordered(
    candidates: tuple[Candidate, ...],
    order: Order,
    card_of: Callable[[Candidate], ModelCard | None],
    conditions: Conditions,
    *,
    explore: bool = False,
) -> tuple[Candidate, ...]:
    """The candidates as the route wants them: ties stay as written, and those of unknown value come last.

    With ``explore`` those of which there is no standing at all come first, unless the order is that of the prices.
    """
    if order == "route":
        return candidates

    def rank(candidate: Candidate) -> tuple[int, float]:
        standing = conditions.get(candidate, UNKNOWN)
        value = order_value(order, card_of(candidate), standing)
        if value is not None:
            return 0, value
        strange = standing.latency_ms is None and standing.success_rate is None
        return (-1 if explore and strange and order != "price" else 1), 0.0

    return tuple(sorted(candidates, key=rank))
