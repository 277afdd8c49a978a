"""Nexus side, after a provider's answer: what it cost, from genai-prices' offline data.

Never rounded; None where the price is not known, since an unknown price is not 0.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

    from pgnexus.messages import Usage
    from pgnexus.providers.catalogue import Vendor

FREE = Decimal(0)
_MILLION = Decimal(1_000_000)


def cost(vendor: Vendor, model: str, usage: Usage) -> Decimal | None:
    """US dollars for ``usage`` of the vendor's ``model``; None when the price is not known.

    Cached tokens are among the prompt's and are charged once, at their own price.
    """
    if vendor.free:
        return FREE
    if vendor.price_id is None or usage.total_tokens == 0:
        return None  # a vendor that counts no tokens has not answered for nothing
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    try:
        row = _row(vendor.price_id, model)
        rates = vars(row.get_prices(datetime.now(UTC)))
        prompt, output = rates.get("input_mtok"), rates.get("output_mtok")
        reread = prompt if rates.get("cache_read_mtok") is None else rates["cache_read_mtok"]
        if (
            isinstance(prompt, Decimal)
            and isinstance(reread, Decimal)
            and isinstance(output, Decimal)
            and rates.get("requests_kcount") is None  # the one price that is due without being counted
        ):  # the same sum as the library's, which takes 60 µs for it
            fresh = prompt * (usage.prompt_tokens - cached)
            return (fresh + reread * cached + output * usage.completion_tokens) / _MILLION
        return _by_library(vendor.price_id, model, usage.prompt_tokens, cached, usage.completion_tokens)
    except (LookupError, ValueError):  # a model without a row, or usage that its row cannot price
        return None
    except ImportError:  # no price list: providers that bring no extra, such as those of tests
        return None


@lru_cache(maxsize=2048)
def _row(price_id: str, model: str) -> ModelInfo:
    """The library's row of a model; raises LookupError for an unknown one."""
    import genai_prices  # noqa: PLC0415 - an extra, and 0.1 s to import

    return genai_prices.calc_price(genai_prices.Usage(), model, provider_id=price_id).model


def _by_library(price_id: str, model: str, prompt: int, cached: int, output: int) -> Decimal:
    import genai_prices  # noqa: PLC0415 - as above

    tokens = genai_prices.Usage(input_tokens=prompt, cache_read_tokens=cached, output_tokens=output)
    return genai_prices.calc_price(tokens, model, provider_id=price_id).total_price
