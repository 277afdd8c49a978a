"""Nexus side, the step `route_llm`: complexity and task type to candidates to one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pgnexus.errors import InvalidSettings
from pgnexus.messages import ApiVersion, Complexity, LLMRequest, ModelInfo
from pgnexus.nexus.breakers import Breakers
from pgnexus.nexus.complaints import Complaints
from pgnexus.nexus.errand import Errand, Instruments
from pgnexus.nexus.journey import Journey
from pgnexus.nexus.limits.gate import Gate
from pgnexus.nexus.outcome import RouteOutcome
from pgnexus.nexus.selection import Candidate, Needs, Selection, Selector
from pgnexus.providers.catalogue import LOCAL, catalogue
from pgnexus.providers.provider import Provider
from pgnexus.settings import Settings

if TYPE_CHECKING:
    from pgnexus.nexus.reservations import Reservations


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
    ) -> None:
        self._providers = providers
        self._vendors = catalogue(settings)
        self._check_names(settings)
        self._instruments = Instruments(
            settings, providers, self._vendors, Complaints(), breakers, gate, reservations
        )
        self._selector = Selector(
            self._vendors,
            providers.keys(),
            {name: row.models for name, row in settings.routes.items()},
            local_model=settings.local_model,
            default_provider=settings.default_provider,
        )

    def _check_names(self, settings: Settings) -> None:
        """What the settings name must have a row; one that is switched off has."""
        named = [(f"routes.{name}", ref) for name, row in settings.routes.items() for ref in row.models]
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
        model: str = "auto",
        provider: str = "auto",
        needs_vision: bool = False,
        api_version: ApiVersion | None = None,
    ) -> list[Candidate]:
        """The candidates in the order in which they are asked; empty when there is none. Pure.

        A model or provider that is named is never replaced: without a key for it there is no candidate.
        """
        needs = Needs(vision=needs_vision, api=api_version)
        return list(self._selector.select(complexity, task_type, model, provider, needs).candidates)

    def available_models(self) -> list[ModelInfo]:
        """Every model of the catalogue and the settings, and whether it can be asked now."""
        return [
            ModelInfo(name, model, reason is None, reason)
            for name, vendor in self._vendors.items()
            for reason in (self._why_unusable(name),)
            for model in vendor.models
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
        needs = Needs(vision=request.has_images, api=request.api_version)
        return self._selector.select(
            request.effective_complexity, request.task_type, request.model, request.provider, needs
        )

    def _why_unusable(self, name: str) -> str | None:
        reason = self._selector.why_unusable(name)
        if reason is None and name == LOCAL:
            missing = getattr(self._providers[name], "missing", None)
            reason = missing() if missing is not None else None
        return reason
