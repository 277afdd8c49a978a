"""What an answer cost: exact, cached tokens once, and unknown when it is unknown."""

from __future__ import annotations

from decimal import Decimal

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnexus.messages import Usage
from pgnexus.providers.catalogue import Vendor, catalogue
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
@given(st.sampled_from(ROWS), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_the_short_sum_is_the_library_s(row: tuple[str, str], prompt: int, cached: int, output: int):
    price_id, model = row
    usage = Usage(
        prompt_tokens=prompt,
        cached_tokens=min(prompt, cached),
        completion_tokens=output,
        total_tokens=prompt + output,
    )
    tokens = genai_prices.Usage(
        input_tokens=prompt, cache_read_tokens=usage.cached_tokens, output_tokens=output
    )
    try:
        theirs = genai_prices.calc_price(tokens, model, provider_id=price_id).total_price
    except (LookupError, ValueError):
        theirs = None
    assert cost(Vendor("v", "", price_id=price_id), model, usage) == theirs
