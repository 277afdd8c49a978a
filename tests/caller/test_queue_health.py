"""What waits where, and how fast it moves: also what fails, and whose fault it is."""

from __future__ import annotations

from typing import Any

import pytest

from pgnexus.errors import RequestFailed
from tests.system import running


async def test_failures_are_counted_by_provider_and_kind(database_url: str, llmock: Any) -> None:
    llmock.fail(400)
    async with running(database_url, llmock.base_url("openai")) as service:
        with pytest.raises(RequestFailed):
            await service.call("simple", "Hello")
        await service.call("simple", "Hello again")
        health = await service.queue_metrics()
    assert (health.calls, health.failed_calls, health.failures) == (2, 1, {"openai bad_request": 1})
    assert {queue.queue for queue in health.queues} >= {"ai_requests", "ai_results"}
    assert health.instances == 1
