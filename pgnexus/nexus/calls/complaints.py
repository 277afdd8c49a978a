"""Beside the step `route_llm`: word of providers that fail, for whoever watches the log."""

from __future__ import annotations

import logging

from pgnexus.errors import (
    AnswerTooLong,
    BadRequest,
    BudgetSpent,
    ContentFiltered,
    ContextTooLong,
    InternalFailure,
    ProviderError,
)
from pgnexus.nexus.selection import Candidate
from pgnexus.providers.provider import Completion

log = logging.getLogger(__name__)

REQUESTS_OWN = (AnswerTooLong, BadRequest, BudgetSpent, ContentFiltered, ContextTooLong, InternalFailure)


def is_the_requests_own(error: ProviderError) -> bool:
    """Whether the error is the fault of what was asked, so that it tells nothing of the vendor."""
    return isinstance(error, REQUESTS_OWN)


class Complaints:
    """Says in the log that a provider fails, once until it answers again: an operator sees an outage, not a flood."""

    def __init__(self) -> None:
        self._failing: dict[str, str] = {}

    def hear(self, candidate: Candidate, answer: Completion | ProviderError) -> None:
        known = self._failing.get(candidate.provider)
        if isinstance(answer, Completion):
            if known is not None:
                del self._failing[candidate.provider]
                log.warning("provider %s: answers again", candidate.provider)
        elif not is_the_requests_own(answer) and known != answer.type:
            self._failing[candidate.provider] = answer.type
            log.warning("provider %s: %s: %s", candidate.provider, answer.type, answer)
