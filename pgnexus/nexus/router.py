"""Nexus side, the step `route_llm`: one request to its candidates in order, until one of them answers."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from pgnexus.errors import (
    BadRequest,
    ContentFiltered,
    InternalFailure,
    InvalidSettings,
    ProviderError,
    ProviderTimeout,
)
from pgnexus.messages import ApiVersion, Complexity, LLMRequest, ModelInfo, Usage
from pgnexus.nexus.complaints import Complaints
from pgnexus.nexus.selection import Candidate, Needs, Selection, Selector
from pgnexus.providers.catalogue import LOCAL, Vendor, catalogue
from pgnexus.providers.prices import cost
from pgnexus.providers.provider import Completion, Provider
from pgnexus.settings import Settings

log = logging.getLogger(__name__)

_SHORT_WAIT = 2.0  # seconds; a longer one is not spent in a worker's slot
_BACKOFF = 0.25
_FAIL_FAST = (BadRequest, ContentFiltered)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to one vendor; ``outcome`` is "success" or the error's type."""

    provider: str
    model: str
    started_at: datetime
    duration_ms: int
    outcome: str
    usage: Usage
    cost: Decimal | None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class RouteOutcome:
    """How a request ended: a completion or an error, never both.

    ``candidate`` is the one that answered, or whose error this is. ``retry_after`` is the smallest wait in
    seconds after which a candidate may be asked again; None when one of them named none.
    """

    completion: Completion | None = None
    error: ProviderError | None = None
    candidate: Candidate | None = None
    attempts: tuple[Attempt, ...] = ()
    retry_after: float | None = None

    @property
    def retryable(self) -> bool:
        return self.error is not None and self.error.retryable

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
        costs = [
            attempt.cost
            for attempt in self.attempts
            if attempt.usage.total_tokens or attempt.cost is not None
        ]
        known = [cost for cost in costs if cost is not None]
        return sum(known, Decimal(0)) if costs and len(known) == len(costs) else None


class LLMRouter:
    """Complexity and task type to candidates to one answer."""

    def __init__(self, settings: Settings, providers: Mapping[str, Provider]) -> None:
        self._settings = settings
        self._providers = providers
        self._vendors = catalogue(settings)
        self._complaints = Complaints()
        self._check_names(settings)
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
        selection = self._selection(request)
        if selection.refusal is not None:
            return RouteOutcome(error=selection.refusal)
        clock = asyncio.get_running_loop().time
        deadline = None if timeout is None else clock() + timeout
        journey = _Journey(
            self._settings, self._providers, self._vendors, self._complaints, request, deadline
        )
        return await journey.through(selection)

    def _selection(self, request: LLMRequest) -> Selection:
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


class _Journey:
    """One request on its way through its candidates."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        vendors: Mapping[str, Vendor],
        complaints: Complaints,
        request: LLMRequest,
        deadline: float | None,
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._vendors = vendors
        self._complaints = complaints
        self._request = request
        self._deadline = deadline
        self._clock = asyncio.get_running_loop().time
        self._attempts: list[Attempt] = []

    async def through(self, selection: Selection) -> RouteOutcome:
        failures: list[tuple[Candidate, ProviderError]] = []
        for candidate in selection.candidates:
            answer = await self._patiently(candidate)
            if isinstance(answer, Completion):
                return RouteOutcome(completion=answer, candidate=candidate, attempts=tuple(self._attempts))
            failures.append((candidate, answer))
            if isinstance(answer, _FAIL_FAST) or self._left() <= 0:
                break
        return self._failed(failures)

    async def _patiently(self, candidate: Candidate) -> Completion | ProviderError:
        """One candidate, asked again at once as often as the settings say and as helps."""
        retries = 0
        while True:
            answer = await self._once(candidate)
            if (
                isinstance(answer, Completion)
                or not answer.retryable
                or retries >= self._settings.router_retries
            ):
                return answer
            wait = answer.retry_after
            if wait is None:
                # Full jitter, so that many workers do not come back in step.
                wait = random.uniform(0, min(_SHORT_WAIT, _BACKOFF * 2**retries))
            if wait > _SHORT_WAIT or wait >= self._left():
                return answer
            retries += 1
            await asyncio.sleep(wait)

    async def _once(self, candidate: Candidate) -> Completion | ProviderError:
        vendor = self._vendors[candidate.provider]
        timeout = min(vendor.timeout or self._settings.provider_timeout, self._left())
        if timeout <= 0:
            return ProviderTimeout(f"{candidate}: no time left to ask it")
        started_at, start = datetime.now(UTC), self._clock()
        answer: Completion | ProviderError
        try:
            provider = self._providers[candidate.provider]
            answer = await provider.complete(self._request, candidate.model, timeout=timeout)
        except ProviderError as error:
            answer = error
        except Exception as error:
            log.exception("request %s: %s failed in our own code", self._request.request_id, candidate)
            answer = InternalFailure(
                f"{candidate}: {type(error).__name__} in pgnexus; its log has the traceback"
            )
        self._complaints.hear(candidate, answer)
        self._note(candidate, answer, started_at, round((self._clock() - start) * 1000))
        return answer

    def _note(
        self, candidate: Candidate, answer: Completion | ProviderError, started_at: datetime, duration_ms: int
    ) -> None:
        who = (candidate.provider, candidate.model, started_at, duration_ms)
        if isinstance(answer, Completion):
            price = self._price(candidate, answer)
            self._attempts.append(Attempt(*who, "success", answer.usage, price))
        else:
            self._attempts.append(Attempt(*who, answer.type, Usage(), None, answer.retry_after))

    def _price(self, candidate: Candidate, completion: Completion) -> Decimal | None:
        vendor = self._vendors[candidate.provider]
        price = cost(vendor, completion.model, completion.usage)
        if price is None and completion.model != candidate.model:
            price = cost(vendor, candidate.model, completion.usage)
        return price

    def _left(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - self._clock()

    def _failed(self, failures: list[tuple[Candidate, ProviderError]]) -> RouteOutcome:
        """The most telling failure: one that a later try may cure, else that of the candidate asked first."""
        last = failures[-1]
        curable = [failure for failure in failures if failure[1].retryable]
        fast = isinstance(last[1], _FAIL_FAST)
        candidate, error = last if fast else (curable or failures)[0]
        waits = [failure[1].retry_after for failure in curable]
        known = [wait for wait in waits if wait is not None]
        retry_after = min(known) if known and len(known) == len(waits) and not fast else None
        return RouteOutcome(
            error=error, candidate=candidate, attempts=tuple(self._attempts), retry_after=retry_after
        )
