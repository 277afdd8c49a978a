"""What a call may use, told before it: cheap, rather too much, and never without a price that is known."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.nexus.books.estimate import estimate, prompt_tokens
from pgnexus.providers.catalogue import catalogue
from pgnexus.settings import Settings

SETTINGS = Settings()
VENDORS = catalogue(SETTINGS)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}


def asking(*contents, **over):
    messages = [{"role": "user", "content": content} for content in contents]
    return LLMRequest(request_id=new_request_id(), messages=messages, **over)


@pytest.mark.parametrize(
    ("contents", "tokens"),
    [
        (["abc"], 1 + 8),
        (["abcd"], 2 + 8),
        (["abc", "abc"], 2 + 16),
        (["日本語"], 3 + 8),
        ([[{"type": "text", "text": "abcdef"}]], 2 + 8),
        ([[{"type": "text", "text": "abc"}, IMAGE]], 1 + 8 + 1600),
        ([[{"type": "file", "file": {"file_data": "A" * 300}}]], 100 + 8),
    ],
)
def test_tokens_of_a_prompt(contents, tokens):
    assert prompt_tokens(asking(*contents)) == tokens


def test_tools_schemas_and_tool_calls_count():
    plain = prompt_tokens(asking("abc"))
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    assert prompt_tokens(asking("abc", tools=[tool])) > plain + 20
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert prompt_tokens(asking("abc", response_format=schema)) > plain + 20
    called = {"id": "1", "function": {"name": "find", "arguments": "x" * 300}}
    request = LLMRequest(
        request_id=new_request_id(), messages=[{"role": "assistant", "tool_calls": [called]}]
    )
    assert prompt_tokens(request) > 100


def test_the_answer_is_as_long_as_it_may_be():
    assert estimate(asking("abc"), VENDORS["openai"], "gpt-4o", SETTINGS).completion_tokens == 1024
    assert estimate(asking("abc", max_tokens=7), VENDORS["openai"], "gpt-4o", SETTINGS).completion_tokens == 7
    short = Settings(reserve_output_tokens=500, models={"openai/gpt-4o": {"max_output_tokens": 50}})
    assert estimate(asking("abc"), VENDORS["openai"], "gpt-4o", short).completion_tokens == 50
    assert estimate(asking("abc", max_tokens=7), VENDORS["openai"], "gpt-4o", short).completion_tokens == 7
    assert estimate(asking("abc"), VENDORS["openai"], "gpt-4o-mini", short).completion_tokens == 500


def test_its_cost_is_by_the_same_prices_as_the_bill_s():
    found = estimate(asking("a" * 276, max_tokens=100), VENDORS["openai"], "gpt-4o", SETTINGS)
    assert (found.prompt_tokens, found.tokens) == (100, 200)
    assert found.cost == Decimal("0.00125")  # 100 * $2.50 + 100 * $10 a million
    assert estimate(asking("abc"), VENDORS["openai"], "no-such-model", SETTINGS).cost is None
    assert estimate(asking("abc"), VENDORS["local"], "smollm2-135m-instruct", SETTINGS).cost == 0
    priced = Settings(models={"openai/no-such-model": {"input_price": 1, "output_price": 1}})
    assert estimate(
        asking("a" * 276, max_tokens=100), VENDORS["openai"], "no-such-model", priced
    ).cost == Decimal("0.0002")
