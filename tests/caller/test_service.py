"""LLMService as a caller meets it, the whole way to a provider and back."""

from __future__ import annotations

from system import running


async def test_a_call_goes_the_whole_way(database_url, llmock):
    llmock.reply("Paris.")
    async with running(database_url, llmock.base_url()) as service:
        result = await service.call("simple", "What is the capital of France?")
    assert (result.text, result.status, result.provider) == ("Paris.", "success", "openai")
