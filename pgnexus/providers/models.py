"""Nexus side, read by the choice of a model and by its books: what is known of each model.

From the settings' row (``models."provider/model"``), else from the vendor's row and genai-prices' offline data.
What nobody knows is None, and rules no model out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pgnexus.providers.catalogue import Vendor

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

    from pgnexus.policy import ModelSettings
    from pgnexus.settings import Settings

_FREE: Final = Decimal(0)
_ANEW = 300.0  # seconds; some prices change by the hour


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a vendor's model; prices are US dollars per million tokens, those of short prompts."""

    provider: str
    model: str
    context_length: int | None = None
    max_output_tokens: int | None = None
    vision: bool | None = None
    tools: bool | None = None
    json_schema: bool | None = None
    input_price: Decimal | None = None
    output_price: Decimal | None = None
    cached_price: Decimal | None = None
    cache_write_price: Decimal | None = None

    @property
    def price(self) -> Decimal | None:
        """By what models are compared: a million tokens, three of the prompt for one of the answer."""
        if self.input_price is None or self.output_price is None:
            return None
        return (3 * self.input_price + self.output_price) / 4


def card(vendor: Vendor, model: str, settings: Settings) -> ModelCard:
    """What is known of ``model`` at ``vendor``; the settings' row is believed before everything else.

    >>> from pgnexus.providers.catalogue import catalogue
    >>> from pgnexus.settings import Settings
    >>> card(catalogue(Settings())["openai"], "gpt-4o", Settings()).context_length
    128000
    """
    row = settings.models.get(f"{vendor.name}/{model}")
    return _card(vendor, model, row, int(time.monotonic() / _ANEW))


@lru_cache(maxsize=4096)
def _card(vendor: Vendor, model: str, row: ModelSettings | None, when: int) -> ModelCard:
    told = {} if row is None else row.model_dump(exclude_none=True)
    return ModelCard(
        vendor.name, model, **{**_by_vendor(vendor, model), **_by_library(vendor, model), **told}
    )


def _by_vendor(vendor: Vendor, model: str) -> dict[str, Any]:
    """What the vendor's row tells: which models cannot, and of those it lists itself that all others can."""
    can = True if vendor.describes(model) else None
    return {
        "context_length": vendor.context_length,
        "vision": can if vendor.sees(model) else False,
        "tools": can if vendor.calls_tools(model) else False,
        "json_schema": can if vendor.keeps_schema(model) else False,
    }


def _by_library(vendor: Vendor, model: str) -> dict[str, Any]:
    if vendor.free:
        names = ("input_price", "output_price", "cached_price", "cache_write_price")
        return dict.fromkeys(names, _FREE)
    row = None if vendor.price_id is None else library_row(vendor.price_id, model)
    if row is None:
        return {}
    rates = vars(row.get_prices(datetime.now(UTC)))
    known = {
        "input_price": _base(rates, "input_mtok"),
        "output_price": _base(rates, "output_mtok"),
        "cached_price": _base(rates, "cache_read_mtok"),
        "cache_write_price": _base(rates, "cache_write_mtok"),
    }
    return known | ({"context_length": row.context_window} if row.context_window else {})


def _base(rates: Mapping[str, Any], name: str) -> Decimal | None:
    rate = rates.get(name)
    rate = getattr(rate, "base", rate)  # one that rises with the prompt is told as it begins
    return rate if isinstance(rate, Decimal) else None


@lru_cache(maxsize=4096)
def library_row(price_id: str, model: str) -> ModelInfo | None:
    """genai-prices' row of a model; None for a model or vendor that it does not know, or without the library."""
    try:
        from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - an extra, and 0.1 s to import

        # Not by calc_price, which keeps every name that it was ever asked for.
        prices = get_snapshot()
        return prices.find_provider(None, price_id, None).find_model(model, all_providers=prices.providers)
    except (ImportError, LookupError, ValueError):
        return None
