"""Nexus side, the step `route_llm`: complexity and task type to candidates to one answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from pgnexus.errors import InvalidSettings
from pgnexus.messages import ApiVersion, Complexity, LLMRequest, ModelInfo
from pgnexus.nexus.books.reservations import Reservations
from pgnexus.nexus.calls.breakers import Breakers
from pgnexus.nexus.calls.complaints import Complaints
from pgnexus.nexus.calls.errand import Errand, Instruments
from pgnexus.nexus.calls.journey import Journey
from pgnexus.nexus.calls.outcome import RouteOutcome
from pgnexus.nexus.limits.gate import Gate
from pgnexus.nexus.selection import (
    Candidate,
    Conditions,
    Explanation,
    Needs,
    Selection,
    Selector,
    Wanted,
)
from pgnexus.providers import keys
from pgnexus.providers.catalogue import LOCAL, catalogue
from pgnexus.providers.provider import Provider
from pgnexus.settings import Settings

_EXPLORE = 50  # one request in so many goes first to a candidate of which nothing is known


class LLMRouter:
    """Complexity and task type to candidates to one answer."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        *,
        breakers: Breakers | None = None,
        gate: Gate | None = None,
        reservations: Reservations | None = None,
        waits: Callable[[str], bool] = lambda _: False,
        alive: Callable[[], bool] = lambda: True,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._providers = providers
        self._vendors = catalogue(settings)
        self._check_names(settings)
        self._instruments = Instruments(
            settings=settings,
            providers=providers,
            vendors=self._vendors,
            complaints=Complaints(),
            key_scopes={name: keys.scope(vendor, environ) for name, vendor in self._vendors.items()},
            breakers=breakers,
            gate=gate,
            reservations=reservations,
            waits=waits,
            alive=alive,
        )
        self._selector = Selector(settings, self._vendors, providers.keys())
        self.conditions: Conditions = {}
        """How the candidates do, for the routes that order by it; whoever watches that sets it."""

    def _check_names(self, settings: Settings) -> None:
        """What the settings name must have a row; one that is switched off has."""
        named = [(f"routes.{name}", ref) for name, row in settings.routes.items() for ref in row.models]
        named += [("models", ref) for ref in settings.models]
        if settings.default_provider is not None:
            named.append(("default_provider", settings.default_provider))
        for where, ref in named:
            vendor = ref.split("/", 1)[0]
            if vendor not in self._vendors and vendor not in settings.providers:
                known = ", ".join(self._vendors)
                raise InvalidSettings(f"{where}: {ref!r} names no provider; known: {known}")

    def select_model(
        self,
        complexity: Complexity,
        task_type: str | None = None,
        *,
        agent_id: str | None = None,
        model: str = "auto",
        provider: str = "auto",
        needs_vision: bool = False,
        needs_tools: bool = False,
        needs_json_schema: bool = False,
        prompt_tokens: int = 0,
        api_version: ApiVersion | None = None,
        conditions: Conditions | None = None,
    ) -> list[Candidate]:
        """The candidates in the order in which they are asked; empty when there is none. Pure.

        A model or provider that is named is never replaced: without a key for it there is no candidate.
        ``prompt_tokens`` are what the prompt has at the least, ``conditions`` how the candidates do at the moment.
        """
        needs = Needs(needs_vision, api_version, needs_tools, needs_json_schema, prompt_tokens)
        wanted = Wanted(complexity, task_type, agent_id, model, provider, needs)
        return list(self._selector.select(wanted, conditions or {}).candidates)

    def explain(self, wanted: Wanted, conditions: Conditions | None = None) -> Explanation:
        """Which models would be asked in which order, and why each one is where it is, or out."""
        unready = {name: why for name in self._vendors if (why := self._why_unusable(name))}
        return self._selector.explain(wanted, conditions or self.conditions, unready)

    def available_models(self) -> list[ModelInfo]:
        """Every model of the catalogue and the settings, and whether it can be asked now."""
        return [
            ModelInfo(name, model, reason is None, reason)
            for name, vendor in self._vendors.items()
            for model in vendor.models
            for reason in (self._why_unusable(name) or self._why_not_now(name, model),)
        ]

    async def route(self, request: LLMRequest, *, timeout: float | None = None) -> RouteOutcome:
        """Ask the candidates in order, within ``timeout`` seconds in all; a failure is a value, too."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        return await self.run(Errand(request, deadline=deadline), self.selection(request))

    async def run(self, errand: Errand, selection: Selection) -> RouteOutcome:
        """`route` for who has looked at the selection before, and wants to know of the calls as they end."""
        if selection.refusal is not None:
            return RouteOutcome(error=selection.refusal)
        return await Journey(self._instruments, errand, selection).through()

    def selection(self, request: LLMRequest) -> Selection:
        """The candidates of a request, or why there are none."""
        explore = request.request_id.int % _EXPLORE == 0
        return self._selector.select(Wanted.by(request), self.conditions, explore=explore)

    @property
    def by_standing(self) -> bool:
        """Whether a route orders by latency or success rate, so that `conditions` has to be kept."""
        return self._selector.by_standing

    def _why_not_now(self, provider: str, model: str) -> str | None:
        """What will pass by itself: an open breaker, a limit that is met."""
        breakers, gate = self._instruments.breakers, self._instruments.gate
        if breakers is not None and breakers.open_for(Candidate(provider, model)) is not None:
            return f"{provider}/{model} failed too often, or asked to be left alone: its breaker is open"
        return None if gate is None else gate.why(provider, model, self._instruments.key_scopes[provider])

    def _why_unusable(self, name: str) -> str | None:
        reason = self._selector.why_unusable(name)
        if reason is None and name == LOCAL:
            missing = getattr(self._providers[name], "missing", None)
            reason = missing() if missing is not None else None
        return reason
