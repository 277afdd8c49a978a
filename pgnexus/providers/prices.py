"""Nexus side, after a provider's answer: what it cost, from genai-prices' offline data.

Never rounded; None where the price is not known, since an unknown price is not 0.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import genai_prices

if TYPE_CHECKING:
    from pgnexus.messages import Usage
    from pgnexus.providers.catalogue import Vendor

FREE = Decimal(0)


def cost(vendor: Vendor, model: str, usage: Usage) -> Decimal | None:
    """US dollars for ``usage`` of the vendor's ``model``; None when the price is not known.

    Cached tokens are among the prompt's and are charged once, at their own price.
    """
    if vendor.free:
        return FREE
    if vendor.price_id is None:
        return None
    tokens = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=min(usage.cached_tokens, usage.prompt_tokens),
        output_tokens=usage.completion_tokens,
    )
    try:
        return genai_prices.calc_price(tokens, model, provider_id=vendor.price_id).total_price
    except (LookupError, ValueError):  # a model without a row, or usage that its row cannot price
        return None
