"""Nexus side, after a provider's answer: what it cost, by the settings' prices, else by genai-prices' offline data.

Never rounded; None where the price is not known, since an unknown price is not 0.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from pgnexus.providers.models import card, library_row

if TYPE_CHECKING:
    from pgnexus.messages import Usage
    from pgnexus.policy import ModelSettings
    from pgnexus.providers.catalogue import Vendor
    from pgnexus.settings import Settings

FREE: Final = Decimal(0)
_MILLION: Final = Decimal(1_000_000)
_ONCE: Final = "requests_kcount"  # the one price that is due without being counted


def cost(vendor: Vendor, model: str, usage: Usage, settings: Settings | None = None) -> Decimal | None:
    """US dollars for ``usage`` of the vendor's ``model``; None when the price is not known.

    Tokens read from the vendor's cache and written to it are among the prompt's and are charged once, at their own
    prices; those of reasoning are among the answer's. Prices in the settings' row of the model go before all others.
    """
    row = None if settings is None else settings.models.get(f"{vendor.name}/{model}")
    if row is not None and _has_prices(row):
        assert settings is not None
        return _by_card(vendor, model, usage, settings)
    if vendor.free:
        return FREE
    if vendor.price_id is None or usage.total_tokens == 0:
        return None  # a vendor that counts no tokens has not answered for nothing
    return _by_library(vendor.price_id, model, usage)


def _has_prices(row: ModelSettings) -> bool:
    prices = (row.input_price, row.output_price, row.cached_price)
    return any(price is not None for price in prices)


def _by_card(vendor: Vendor, model: str, usage: Usage, settings: Settings) -> Decimal | None:
    """By the settings' row; what it does not tell is the price list's."""
    known = card(vendor, model, settings)
    if known.input_price is None or known.output_price is None or usage.total_tokens == 0:
        return None
    reread = known.input_price if known.cached_price is None else known.cached_price
    written = known.input_price if known.cache_write_price is None else known.cache_write_price
    return _sum(usage, known.input_price, reread, written, known.output_price)


def _by_library(price_id: str, model: str, usage: Usage) -> Decimal | None:
    row = library_row(price_id, model)
    if row is None:
        return None
    rates = vars(row.get_prices(datetime.now(UTC)))
    prompt, output = rates.get("input_mtok"), rates.get("output_mtok")
    reread, written = (
        prompt if rates.get(name) is None else rates[name] for name in ("cache_read_mtok", "cache_write_mtok")
    )
    if (
        isinstance(prompt, Decimal)
        and isinstance(output, Decimal)
        and isinstance(reread, Decimal)
        and isinstance(written, Decimal)
        and rates.get(_ONCE) is None
        and (rates.get("output_reasoning_mtok") is None or not usage.reasoning_tokens)
    ):  # the same sum as the library's, which takes 60 µs for it
        return _sum(usage, prompt, reread, written, output)
    return _as_the_library_does(price_id, model, usage)


def _sum(usage: Usage, prompt: Decimal, reread: Decimal, written: Decimal, output: Decimal) -> Decimal:
    """Prices are a million tokens'."""
    cached, fresh_to_cache = _of_the_prompt(usage)
    fresh = prompt * (usage.prompt_tokens - cached - fresh_to_cache)
    return (fresh + reread * cached + written * fresh_to_cache + output * usage.completion_tokens) / _MILLION


def _of_the_prompt(usage: Usage) -> tuple[int, int]:
    """Tokens read from the cache and written to it, together no more than the prompt has."""
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    return cached, min(usage.cache_write_tokens, usage.prompt_tokens - cached)


def _as_the_library_does(price_id: str, model: str, usage: Usage) -> Decimal | None:
    import genai_prices  # noqa: PLC0415 - an extra, and 0.1 s to import

    cached, written = _of_the_prompt(usage)
    tokens = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=cached,
        cache_write_tokens=written,
        output_tokens=usage.completion_tokens,
        output_reasoning_tokens=min(usage.reasoning_tokens, usage.completion_tokens),
    )
    try:
        return genai_prices.calc_price(tokens, model, provider_id=price_id).total_price
    except (LookupError, ValueError):  # usage that the model's row cannot price
        return None
