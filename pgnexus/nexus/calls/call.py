"""Nexus side, inside the step `route_llm`: one call to one vendor, paid for whatever becomes of it.

Before it its limits and budgets are reserved and it is noted as in flight; after it the attempt is noted, also when
it was given up half-way: what a vendor may bill is in the books.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from decimal import Decimal

from pgnexus import telemetry
from pgnexus.errors import (
    AnswerTooLong,
    BadAnswer,
    BudgetSpent,
    InternalFailure,
    ProviderError,
    ProviderTimeout,
)
from pgnexus.messages import Usage
from pgnexus.nexus.books.attempt import Attempt, Estimate
from pgnexus.nexus.books.estimate import estimate
from pgnexus.nexus.calls.errand import Errand, Instruments
from pgnexus.nexus.limits.permit import UNLIMITED, Ask, OverBudget, OverLimit, Permit
from pgnexus.nexus.selection import Candidate
from pgnexus.providers.prices import cost
from pgnexus.providers.provider import Completion, Delta, OnDelta

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds; a longer wait is not spent in a worker's slot
_LIMIT_PATIENCE = 0.25  # less, for a flood over a limit must not hold every slot for long
_MAY_BE_BILLED = (ProviderTimeout, BadAnswer, AnswerTooLong)  # though their tokens are not told

Answer = Completion | ProviderError | OverLimit


class Call:
    """One call of one errand to one candidate."""

    def __init__(self, instruments: Instruments, errand: Errand, candidate: Candidate) -> None:
        self._with = instruments
        self._errand = errand
        self._candidate = candidate
        self._vendor = instruments.vendors[candidate.provider]
        self._clock = asyncio.get_running_loop().time
        self._expected: Estimate | None = None
        self._permit: Permit = UNLIMITED
        self._started_at = datetime.now(UTC)
        self._start = self._clock()
        self._said = False
        self.was_made = False
        """Whether the vendor was asked, so that the answer is its own."""

    async def make(self) -> Answer:
        """The completion, the vendor's refusal, or which limit has no room for the call.

        Raises `asyncio.CancelledError` in a worker that is taken for dead, after a freeze: others have been given its
        work, and would pay for the call once more.
        """
        if not self._with.alive():
            raise asyncio.CancelledError("this worker's lease has run out")
        refusal = await self._admit()
        if refusal is not None:
            return refusal
        timeout = min(self._vendor.timeout or self._with.settings.provider_timeout, self._errand.left())
        if timeout <= 0:
            self._permit.cancel()
            return ProviderTimeout(f"{self._candidate}: no time left to ask it")
        request = self._errand.request
        stream = self._errand.on_delta is not None
        name, model, url = self._candidate.provider, self._candidate.model, self._vendor.base_url or None
        with telemetry.provider_call(name, model, request=request, stream=stream, base_url=url) as watched:
            return await self._made(timeout, watched)

    async def _made(self, timeout: float, watched: telemetry.ProviderCall) -> Completion | ProviderError:
        """The call itself, with everything noted that is to be known of it."""
        await self._reserve()
        self._started_at, self._start = datetime.now(UTC), self._clock()
        self.was_made = True
        answer: Completion | ProviderError | None = None
        try:
            answer = await self._ask(timeout, watched)
            return answer
        finally:
            attempt = self._attempt(answer)
            self._errand.calls.append(attempt)
            if not isinstance(answer, Completion) and self._said and self._errand.on_discard is not None:
                self._errand.on_discard()
            self._tell(watched, attempt, answer)

    def _estimate(self) -> Estimate:
        if self._expected is None:
            self._expected = estimate(
                self._errand.request, self._vendor, self._candidate.model, self._with.settings
            )
        return self._expected

    async def _admit(self) -> ProviderError | OverLimit | None:
        """Reserve what limits and budgets have for the call; None when there is room."""
        gate, request = self._with.gate, self._errand.request
        if gate is None or not gate.limited:
            return None
        line = self._line()
        if line is not None:
            return OverLimit(line, None)
        ask = Ask(
            provider=self._candidate.provider,
            model=self._candidate.model,
            key=self._with.key_scopes[self._candidate.provider],
            agent_id=request.agent_id,
            priority=request.priority,
            estimate=self._estimate(),
        )
        permit = await gate.admit(ask, patience=max(0.0, min(_LIMIT_PATIENCE, self._errand.left())))
        if isinstance(permit, OverBudget):
            return BudgetSpent(f"{self._candidate}: {permit.message}")
        if isinstance(permit, OverLimit):
            return permit
        self._permit = permit
        return None

    def _line(self) -> str | None:
        """The limit for which others wait in line already, where this one has to wait behind them."""
        if self._errand.turn:
            return None
        provider, agent = self._candidate.provider, self._errand.request.agent_id
        key = self._with.key_scopes[provider]
        scopes = (str(self._candidate), provider, key and f"key:{key}", agent and f"agent:{agent}")
        return next((scope for scope in scopes if scope and self._with.waits(scope)), None)

    async def _reserve(self) -> None:
        """Note the call as in flight; one that a budget pays for begins when that is stored."""
        reservations, errand = self._with.reservations, self._errand
        if reservations is None:
            return
        number, charges = len(errand.calls) + 1, self._permit.charges
        reservation = reservations.open(
            errand.request.request_id, errand.attempt, number, self._candidate, self._estimate, charges
        )
        if not charges:
            return
        try:
            await reservation.stored()
        except BaseException:  # given up before the call began
            reservations.withdraw(reservation)
            self._permit.cancel()
            raise

    async def _ask(self, timeout: float, watched: telemetry.ProviderCall) -> Completion | ProviderError:
        errand, candidate = self._errand, self._candidate
        provider = self._with.providers[candidate.provider]
        try:
            if errand.on_delta is None:
                return await provider.complete(errand.request, candidate.model, timeout=timeout)
            hear = self._hearing(errand.on_delta, watched)
            return await provider.complete(errand.request, candidate.model, timeout=timeout, on_delta=hear)
        except ProviderError as error:
            return error
        except Exception as error:
            log.exception("request %s: %s failed in our own code", errand.request.request_id, candidate)
            return InternalFailure(
                f"{candidate}: {type(error).__name__} in pgnexus; its log has the traceback"
            )

    def _hearing(self, on_delta: OnDelta, watched: telemetry.ProviderCall) -> OnDelta:
        def hear(delta: Delta) -> None:
            if not self._said:
                self._said = True
                watched.first_token()
            on_delta(delta)

        return hear

    def _attempt(self, answer: Completion | ProviderError | None) -> Attempt:
        """For the books; a call that may have been billed, though nobody told for what, at what was set aside.

        None stands for a call that was given up.
        """
        refusal = answer if isinstance(answer, ProviderError) else None
        usage = None if answer is None else answer.usage
        left = answer is None or (isinstance(refusal, _MAY_BE_BILLED) and refusal.status is None)
        estimated = usage is None and left
        if estimated:
            usage, price = self._estimate().as_usage(), self._estimate().cost
        elif usage is not None:
            answered = answer.model if isinstance(answer, Completion) else self._candidate.model
            price = self._price(answered, usage)
        else:
            usage, price = Usage(), None
        return Attempt(
            self._candidate.provider,
            self._candidate.model,
            self._started_at,
            round((self._clock() - self._start) * 1000),
            "cancelled" if answer is None else "success" if refusal is None else refusal.type,
            usage,
            price,
            retry_after=None if refusal is None else refusal.retry_after,
            number=len(self._errand.calls) + 1,
            error=None if refusal is None else str(refusal),
            estimated=estimated,
            charges=self._permit.settle(usage.total_tokens, price),
        )

    @staticmethod
    def _tell(
        watched: telemetry.ProviderCall, attempt: Attempt, answer: Completion | ProviderError | None
    ) -> None:
        whole = answer if isinstance(answer, Completion) else None
        watched.ended(
            attempt.outcome,
            usage=attempt.usage,
            cost=attempt.cost,
            response_model=None if whole is None else whole.model,
            finish_reason=None if whole is None else whole.finish_reason,
            status=answer.status if isinstance(answer, ProviderError) else None,
            estimated=attempt.estimated,
        )

    def _price(self, model: str, usage: Usage) -> Decimal | None:
        """By the settings' prices of what was asked, else by the name that the vendor gave, else by the one asked."""
        settings, asked = self._with.settings, self._candidate.model
        row = settings.models.get(str(self._candidate))
        names = (asked, model) if row is not None and row.input_price is not None else (model, asked)
        prices = (cost(self._vendor, name, usage, settings) for name in names)
        return next((price for price in prices if price is not None), None)
