"""Nexus side, the step `route_llm`: one request to its candidates in order, until one of them answers."""

from __future__ import annotations

import asyncio
import random

from pgnexus.errors import (
    BadRequest,
    ContentFiltered,
    ContextTooLong,
    InternalFailure,
    ProviderError,
    ProviderUnavailable,
)
from pgnexus.nexus.calls.call import PATIENCE, Answer, Call
from pgnexus.nexus.calls.errand import Errand, Instruments
from pgnexus.nexus.calls.outcome import Held, RouteOutcome
from pgnexus.nexus.limits.permit import OverLimit
from pgnexus.nexus.selection import Candidate, Selection
from pgnexus.providers.models import card
from pgnexus.providers.provider import Completion

_BACKOFF = 0.25
_FAIL_FAST = (BadRequest, ContentFiltered)


class Journey:
    """One errand on its way through its candidates."""

    def __init__(self, instruments: Instruments, errand: Errand, selection: Selection) -> None:
        self._with = instruments
        self._errand = errand
        self._selection = selection
        self._failures: list[tuple[Candidate, ProviderError]] = []
        self._over: OverLimit | None = None
        self._too_short = 0  # tokens of the longest context that the prompt did not fit into

    async def through(self) -> RouteOutcome:
        """Ask the candidates in order; a failure is a value, too."""
        for candidate in self._selection.candidates:
            if self._is_too_short(candidate):
                continue
            answer = await self._patiently(candidate)
            if isinstance(answer, Completion):
                calls = tuple(self._errand.calls)
                return RouteOutcome(completion=answer, candidate=candidate, attempts=calls)
            if self._ends_with(candidate, answer):
                break
        return self._without_answer()

    def _ends_with(self, candidate: Candidate, answer: ProviderError | OverLimit) -> bool:
        """Whether no other candidate is to be asked after this answer."""
        route = self._selection.route
        if isinstance(answer, OverLimit):
            self._over = self._over or answer
            return route.over_limit == "wait"
        self._failures.append((candidate, answer))
        if isinstance(answer, ContextTooLong):
            self._too_short = max(self._too_short, self._context(candidate) or 1)
            return not route.longer_context
        return isinstance(answer, _FAIL_FAST) or self._errand.left() <= 0

    def _is_too_short(self, candidate: Candidate) -> bool:
        """Whether its context is known to be no longer than one that was too short."""
        return self._too_short > 0 and (self._context(candidate) or self._too_short + 1) <= self._too_short

    def _context(self, candidate: Candidate) -> int | None:
        vendor = self._with.vendors[candidate.provider]
        return card(vendor, candidate.model, self._with.settings).context_length

    async def _patiently(self, candidate: Candidate) -> Answer:
        """One candidate, asked again at once as often as the settings say and as helps."""
        breakers, retries = self._with.breakers, 0
        while True:
            if breakers is not None and (wait := await breakers.wait_for(candidate)) > 0:
                return _left_alone(candidate, wait, probed=breakers.open_for(candidate) == 0)
            answer = await self._asked(candidate)
            if not isinstance(answer, ProviderError) or not answer.retryable:
                return answer
            wait = _wait_after(answer, retries)
            if (
                retries >= self._with.settings.router_retries
                or wait > PATIENCE
                or wait >= self._errand.left()
            ):
                return answer
            retries += 1
            await asyncio.sleep(wait)

    async def _asked(self, candidate: Candidate) -> Answer:
        """One call, and word of it to whoever watches the vendor."""
        told: Completion | ProviderError | None = None
        call = Call(self._with, self._errand, candidate)
        try:
            answer = await call.make()
            if call.was_made and not isinstance(answer, OverLimit | InternalFailure):
                told = answer
            return answer
        finally:
            if told is not None:
                self._with.complaints.hear(candidate, told)
            if (breakers := self._with.breakers) is not None:
                breakers.hear(candidate, told) if told is not None else breakers.give_up(candidate)

    def _without_answer(self) -> RouteOutcome:
        """Held where there will be room; else the most telling failure: one that a later try may cure, else that
        of the candidate asked first.
        """
        calls, failures = tuple(self._errand.calls), self._failures
        fast = bool(failures) and isinstance(failures[-1][1], _FAIL_FAST)
        if self._over is not None and not fast:
            return RouteOutcome(held=Held(self._over.scope, self._over.retry_in), attempts=calls)
        curable = [failure for failure in failures if failure[1].retryable]
        candidate, error = failures[-1] if fast else (curable or failures)[0]
        waits = [failure[1].retry_after for failure in curable]
        known = [wait for wait in waits if wait is not None]
        retry_after = min(known) if known and len(known) == len(waits) and not fast else None
        return RouteOutcome(error=error, candidate=candidate, attempts=calls, retry_after=retry_after)


def _left_alone(candidate: Candidate, wait: float, *, probed: bool) -> ProviderUnavailable:
    """Nobody knows how long a probe takes: until it has come to something, each who waits comes back less often."""
    if probed:
        return ProviderUnavailable(
            f"{candidate}: left alone while another call finds out whether it answers again"
        )
    words = f"{candidate}: left alone for {wait:.3g} s more after what it answered to others"
    return ProviderUnavailable(words, retry_after=wait)


def _wait_after(error: ProviderError, retries: int) -> float:
    """Seconds that the vendor asked for, else a backoff with full jitter, so that many do not come back in step."""
    if error.retry_after is not None:
        return error.retry_after
    return random.uniform(0, min(PATIENCE, _BACKOFF * 2.0**retries))
