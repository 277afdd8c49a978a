"""A request that waits for its next try says so, and why."""

from __future__ import annotations

from typing import Any

from tests.system import running, until


async def test_a_request_that_waits_for_a_retry_tells_the_last_error(database_url: str, llmock: Any) -> None:
    llmock.outage()
    async with running(database_url, llmock.base_url("openai"), retry_base_delay=30) as service:
        handle = await service.enqueue("simple", "Hello")

        async def waits() -> Any:
            progress = await handle.progress()
            return progress if progress is not None and progress.next_try_in is not None else None

        progress = await until(waits)
        assert not progress.running
        assert progress.attempts >= 1
        assert progress.next_try_in <= 60
        assert "503" in str(progress)
        assert "again in" in str(progress)
        assert await handle.status() == "enqueued"
        assert await handle.cancel()
        assert await handle.progress() is None


async def test_nobody_has_taken_it_up(database_url: str) -> None:
    async with running(database_url, nexus=False) as service:
        handle = await service.enqueue("simple", "Hello")
        assert await handle.progress() is None
