"""What is known of a model: by the settings, the vendor's row and the price list, and what nobody knows."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from pgnexus.providers.catalogue import LOCAL, LOCAL_MODEL, catalogue
from pgnexus.providers.models import ModelCard, card, library_row
from pgnexus.settings import Settings


def known(vendor: str, model: str, **settings: Any) -> ModelCard:
    loaded = Settings(**settings)
    return card(catalogue(loaded)[vendor], model, loaded)


def test_the_price_list_tells_prices_and_context() -> None:
    found = known("openai", "gpt-4o")
    assert (found.context_length, found.max_output_tokens) == (128_000, None)
    assert (found.input_price, found.output_price) == (Decimal("2.5"), Decimal(10))
    assert (found.cached_price, found.cache_write_price) == (Decimal("1.25"), None)
    assert found.price == Decimal("4.375")


def test_a_price_that_rises_with_the_prompt_is_told_as_it_begins() -> None:
    row = library_row("google", "gemini-2.5-pro")
    assert row is not None
    rate = vars(row.prices[-1].prices if isinstance(row.prices, list) else row.prices)["input_mtok"]
    assert known("gemini", "gemini-2.5-pro").input_price == rate.base < rate.tiers[0].price


def test_nothing_is_known_of_a_stranger() -> None:
    house = {"house": {"base_url": "http://house/v1", "models": ["ours"]}}
    assert known("house", "ours", providers=house) == ModelCard("house", "ours")
    assert known("house", "ours", providers=house).price is None
    assert known("openai", "gpt-99-unheard-of") == ModelCard("openai", "gpt-99-unheard-of")


def test_the_settings_are_believed_before_all_others() -> None:
    row = {"context_length": 9, "vision": False, "tools": False, "input_price": "0.1", "max_output_tokens": 5}
    found = known("openai", "gpt-4o", models={"openai/gpt-4o": row, "openai/gpt-4o-mini": {"tools": False}})
    assert (found.context_length, found.max_output_tokens, found.vision, found.tools) == (9, 5, False, False)
    assert (found.input_price, found.output_price) == (Decimal("0.1"), Decimal(10))
    assert found.json_schema is True


@pytest.mark.parametrize(
    ("vendor", "model", "vision", "tools", "json_schema"),
    [
        ("openai", "gpt-4o", True, True, True),
        ("openai", "gpt-4o-2024-08-06", None, None, None),
        ("openai", "gpt-4o-2024-05-13", None, None, False),
        ("openai", "gpt-3.5-turbo", False, None, False),
        ("openai", "gpt-4.1", None, None, None),
        ("deepseek", "deepseek-v4-pro", False, True, False),
        ("groq", "openai/gpt-oss-20b", False, True, True),
        ("groq", "llama-3.3-70b-versatile", False, True, False),
        ("ollama", "llama3", None, None, None),
    ],
)
def test_abilities(vendor: str, model: str, vision: Any, tools: Any, json_schema: Any) -> None:
    found = known(vendor, model)
    assert (found.vision, found.tools, found.json_schema) == (vision, tools, json_schema)


def test_a_schema_is_passed_over_on_one_wire_only() -> None:
    vendor, settings = catalogue(Settings())["anthropic"], Settings()
    by_wire = {
        wire: card(replace(vendor, asked_by=wire), "claude-sonnet-5-5", settings).json_schema
        for wire in ("openai", "any-llm")
    }
    assert by_wire == {"openai": False, "any-llm": True}


def test_the_local_model_is_free_and_short() -> None:
    found = known(LOCAL, LOCAL_MODEL)
    assert (found.price, found.context_length, found.vision) == (0, 4096, False)


def test_what_a_vendors_row_says_in_the_settings_is_no_other_vendors() -> None:
    renamed = replace(catalogue(Settings())["openai"], name="gate", price_id=None)
    assert card(renamed, "gpt-4o", Settings()) == ModelCard("gate", "gpt-4o")
