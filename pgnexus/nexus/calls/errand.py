"""Nexus side, words of the step `route_llm`: one request in one claim, and what its calls are made with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pgnexus.messages import LLMRequest
from pgnexus.nexus.books.attempt import Attempt
from pgnexus.nexus.books.reservations import Reservations
from pgnexus.nexus.calls.breakers import Breakers
from pgnexus.nexus.calls.complaints import Complaints
from pgnexus.nexus.limits.gate import Gate
from pgnexus.providers.catalogue import Vendor
from pgnexus.providers.provider import Delta, Provider
from pgnexus.settings import Settings


@dataclass(slots=True)
class Errand:
    """One request in one claim: what it asks, until when (by the loop's clock), and the calls made so far.

    ``attempt`` counts how often the request was taken up. ``calls`` is filled as they end, so that whoever gives
    the errand up half-way still has them. ``on_delta`` hears a streamed answer as it comes, ``on_discard`` that all
    it heard is void. ``turn`` is set when it has waited in the line for a limit: it passes by all who wait there.
    """

    request: LLMRequest
    attempt: int = 1
    deadline: float | None = None
    calls: list[Attempt] = field(default_factory=list)
    on_delta: Callable[[Delta], None] | None = None
    on_discard: Callable[[], None] | None = None
    turn: bool = False

    def left(self) -> float:
        """Seconds until its deadline; infinite without one."""
        return float("inf") if self.deadline is None else self.deadline - asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class Instruments:
    """What calls are made with; the parts that work through the database are None where there is none.

    ``waits`` tells whether somebody is parked for a limit's scope, ``alive`` whether others still take this worker for
    alive.
    """

    settings: Settings
    providers: Mapping[str, Provider]
    vendors: Mapping[str, Vendor]
    complaints: Complaints
    key_scopes: Mapping[str, str | None]  # by vendor: what its key is called in scopes
    breakers: Breakers | None = None
    gate: Gate | None = None
    reservations: Reservations | None = None
    waits: Callable[[str], bool] = lambda _: False
    alive: Callable[[], bool] = lambda: True
