"""An outage is said once, and its end; what is a request's own fault is not."""

from __future__ import annotations

import logging

import pytest

from pgnexus.errors import BadRequest, InvalidSettings, ProviderUnavailable, TooManyRequests
from pgnexus.messages import Usage
from pgnexus.nexus.calls.complaints import Complaints
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.selection import Candidate
from pgnexus.providers.provider import Completion
from pgnexus.settings import Settings


def test_an_outage_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="pgnexus")
    complaints, candidate = Complaints(), Candidate("openai", "gpt-4o")
    answer = Completion({}, "Hello", "gpt-4o", "stop", Usage())
    for heard in (
        answer,
        BadRequest("no"),
        ProviderUnavailable("down"),
        ProviderUnavailable("down"),
        TooManyRequests("slowly"),
        answer,
        answer,
    ):
        complaints.hear(candidate, heard)
    assert [record.getMessage() for record in caplog.records] == [
        "provider openai: provider_unavailable: down",
        "provider openai: rate_limited: slowly",
        "provider openai: answers again",
    ]


def test_a_default_provider_must_be_known() -> None:
    with pytest.raises(InvalidSettings, match="default_provider: 'nope' names no provider"):
        LLMRouter(Settings(default_provider="nope"), {})
