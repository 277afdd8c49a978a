"""What an answer cost: exact, cached tokens once, and unknown when it is unknown."""

from __future__ import annotations

import tracemalloc
from decimal import Decimal

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnexus.messages import Usage
from pgnexus.providers.catalogue import Vendor, catalogue
from pgnexus.providers.models import library_row
from pgnexus.providers.prices import cost
from pgnexus.settings import Settings

VENDORS = catalogue(Settings())
USED = Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=100, total_tokens=1100)
OURS = {vendor.price_id for vendor in VENDORS.values() if vendor.price_id}
ROWS = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    if provider.id in OURS
    for model in provider.models
]


def test_cached_tokens_are_charged_once_at_their_own_price():
    # $2.50 a million fresh, $1.25 cached, $10 out
    assert cost(VENDORS["openai"], "gpt-4o", USED) == Decimal("0.0030")
    assert cost(VENDORS["openai"], "gpt-4o-2024-08-06", USED) == Decimal("0.0030")


def test_what_is_written_to_the_cache_has_its_own_price_where_there_is_one():
    used = Usage(
        prompt_tokens=1000,
        cached_tokens=400,
        cache_write_tokens=100,
        completion_tokens=100,
        total_tokens=1100,
    )
    # $2 a million fresh, $0.10 cached, $2.50 written, $10 out: 500 fresh, 400 cached, 100 written, 100 out
    assert cost(VENDORS["anthropic"], "claude-sonnet-5-5", used) == Decimal("0.00229")
    # $2.50 fresh, written too, $1.25 cached, $10 out: 600 fresh, 400 cached, 100 out
    assert cost(VENDORS["openai"], "gpt-4o", used) == Decimal("0.0030")


def test_a_price_that_rises_with_the_prompt():
    # gemini-2.5-pro: $1.25, $0.125 cached, $10 out up to 200,000 tokens of prompt, above $2.50, $0.25, $15
    short = Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=100, total_tokens=1100)
    assert cost(VENDORS["gemini"], "gemini-2.5-pro", short) == Decimal("0.0018")
    long = Usage(prompt_tokens=300_000, cached_tokens=100_000, completion_tokens=1000, total_tokens=301_000)
    assert cost(VENDORS["gemini"], "gemini-2.5-pro", long) == Decimal("0.54")


def test_tokens_of_reasoning_are_among_the_answer_s():
    thought = USED.model_copy(update={"reasoning_tokens": 90})
    for vendor, model in (
        ("openai", "gpt-5.4-mini"),
        ("anthropic", "claude-opus-5-5"),
        ("gemini", "gemini-2.5-pro"),
    ):
        known = cost(VENDORS[vendor], model, USED)
        assert known is not None
        assert cost(VENDORS[vendor], model, thought) == known


def test_more_cached_tokens_than_the_prompt_has_are_no_more_than_it_has():
    odd = Usage(
        prompt_tokens=10, cached_tokens=40, cache_write_tokens=7, completion_tokens=0, total_tokens=10
    )
    assert cost(VENDORS["openai"], "gpt-4o", odd) == Decimal("0.0000125")


def test_prices_of_the_settings_go_before_all_others():
    set_here = Settings(
        models={
            "openai/gpt-4o": {"input_price": "1", "output_price": "2", "cached_price": "0.5"},
            "openai/gpt-4o-mini": {"output_price": "100"},
            "vllm/qwen": {"input_price": "0.1", "output_price": "0.2"},
            "vllm/half": {"input_price": "0.1"},
            "local/smollm2-135m-instruct": {"input_price": "1", "output_price": "1"},
            "openai/described": {"context_length": 5},
        }
    )

    def told(vendor: str, model: str, usage: Usage = USED) -> Decimal | None:
        return cost(VENDORS[vendor], model, usage, set_here)

    assert told("openai", "gpt-4o") == Decimal("0.001")  # 600 * 1 + 400 * 0.5 + 100 * 2
    assert told("openai", "gpt-4o-mini") == Decimal("0.01012")  # $0.15 and $0.075 are the list's
    assert told("vllm", "qwen") == Decimal("0.00012")  # cached ones at the price of the prompt's
    assert told("vllm", "half") is None
    assert told("local", "smollm2-135m-instruct") == Decimal("0.0007")  # cached ones stay free
    assert told("openai", "described") is None
    assert told("openai", "gpt-4o", Usage()) is None
    assert told("openai", "gpt-5.4-mini") == cost(VENDORS["openai"], "gpt-5.4-mini", USED)


def test_fractions_of_a_cent_are_kept():
    one = Usage(prompt_tokens=1, total_tokens=1)
    assert cost(VENDORS["openai"], "gpt-4o", one) == Decimal("0.0000025")


def test_the_local_model_is_free_and_unknown_is_not_free():
    assert cost(VENDORS["local"], "smollm2-135m-instruct", USED) == 0
    assert cost(VENDORS["openai"], "no-such-model", USED) is None
    assert cost(VENDORS["vllm"], "gpt-4o", USED) is None
    assert cost(VENDORS["openai"], "gpt-4o", Usage()) is None


@pytest.mark.parametrize("vendor", [v for v in VENDORS.values() if v.price_id], ids=lambda v: v.name)
def test_every_model_that_we_route_to_has_a_price(vendor: Vendor):
    assert [model for model in vendor.models if cost(vendor, model, USED) is None] == []


@settings(deadline=None)  # the library is slow to load
@given(
    st.sampled_from(ROWS),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
)
def test_the_short_sum_is_the_library_s(
    row: tuple[str, str], prompt: int, cached: int, written: int, output: int
):
    price_id, model = row
    cached = min(prompt, cached)
    usage = Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=min(prompt - cached, written),
        completion_tokens=output,
        total_tokens=prompt + output,
    )
    tokens = genai_prices.Usage(
        input_tokens=prompt,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=output,
    )
    try:
        theirs = genai_prices.calc_price(tokens, model, provider_id=price_id).total_price
    except (LookupError, ValueError):
        theirs = None
    assert cost(Vendor("v", "", price_id=price_id), model, usage) == theirs


def test_names_that_callers_make_up_are_not_kept_for_ever():
    look_up = library_row.__wrapped__  # what its own memory holds is bounded
    assert look_up("openai", "gpt-4o") is not None
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            look_up("openai", f"no-such-model-{number}")
            look_up("openai", f"gpt-4o-2024-08-06-{number}")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
