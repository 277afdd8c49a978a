"""Requests that say what no vendor would: they end, and hold nothing for ever."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from system import sql, started, until

from pgnexus.errors import RequestCancelled
from pgnexus.messages import Usage, new_request_id
from pgnexus.nexus.books.attempt import Attempt
from pgnexus.nexus.settlement import Claim, Settlement
from pgnexus.nexus.workflow import LLMRequestWorkflow

NEVER_HEARD_OF = "openai/of-our-own"  # so that nobody knows its longest answer


async def test_an_answer_of_absurd_length_is_set_aside_and_booked(database_url, llmock, db):
    """What may be billed of a call that was given up is a number that the books can hold."""
    llmock.delay(30.0)
    async with started(database_url, llmock.base_url()) as app:
        handle = await app.service.enqueue(NEVER_HEARD_OF, "Hello", max_tokens=10**30)
        await until(lambda: sql(db, "select 1 from nexus.reservations"))
        await handle.cancel()
        with pytest.raises(RequestCancelled):
            await handle.result(5)

        async def free() -> bool:
            return app.nexus is not None and app.nexus.consumer.in_flight == 0

        await until(free)
    [(outcome, tokens)] = await sql(db, "select outcome, completion_tokens from nexus.attempts")
    assert (outcome, tokens > 0) == ("cancelled", True)


def test_what_the_database_never_takes_does_not_keep_a_request_for_ever(caplog):
    claim = Claim(new_request_id(), "validate", 1, {}, None)
    call = Attempt("openai", "gpt-4o", datetime.now(UTC), 1, "success", Usage(), None, error="odd")
    first = LLMRequestWorkflow.unstorable(Settlement(claim, "success", calls=(call,)), "no")
    assert first.calls == (replace(call, error=None),)
    assert LLMRequestWorkflow.unstorable(first, "no").calls == ()
    assert "not in the books" in caplog.text


async def test_an_answer_may_be_kept_for_ever(database_url, llmock):
    async with started(database_url, llmock.base_url()) as app:
        for cached in (False, True):
            assert (await app.service.call("simple", "Hello", cache=1e300)).cached == cached
