"""Vendors as rows, the settings' rows over them, and which of them can be asked."""

from __future__ import annotations

import pytest

from pgnexus.errors import InvalidSettings
from pgnexus.providers import build_providers
from pgnexus.providers.catalogue import catalogue
from pgnexus.settings import Settings


def test_settings_lie_over_a_row():
    rows = catalogue(
        Settings(providers={"openai": {"base_url": "https://gateway.test/v1/", "models": ["mine"]}})
    )
    openai = rows["openai"]
    assert (openai.base_url, openai.api_key_env) == ("https://gateway.test/v1", ("OPENAI_API_KEY",))
    assert openai.models[:2] == ("mine", "gpt-4o")
    assert openai.needs_key


def test_a_new_name_is_a_new_vendor():
    new = catalogue(Settings(providers={"ours": {"base_url": "http://host:1/v1", "models": ["m"]}}))["ours"]
    assert (new.needs_key, new.models) == (False, ("m",))
    keyed = catalogue(Settings(providers={"ours": {"base_url": "http://host:1/v1", "api_key_env": "K"}}))[
        "ours"
    ]
    assert (keyed.needs_key, keyed.api_key_env) == (True, ("K",))


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("ours", {}, r"providers\.ours\.base_url: missing"),
        ("openai", {"base_url": "host/v1"}, "must begin with http"),
        ("local", {"base_url": "http://host/v1"}, "another name"),
    ],
)
def test_rows_that_cannot_work_are_refused(name, row, words):
    with pytest.raises(InvalidSettings, match=words):
        catalogue(Settings(providers={name: row}))


def test_providers_are_those_that_can_be_asked():
    assert list(build_providers(Settings(), {})) == ["ollama", "vllm", "local"]
    keys = {"GOOGLE_API_KEY": "g", "OPENAI_API_KEY": "  ", "GROQ_API_KEY": "q"}
    off = Settings(providers={"groq": {"enabled": False}})
    assert list(build_providers(off, keys)) == ["gemini", "ollama", "vllm", "local"]


def test_a_key_that_no_header_can_hold():
    with pytest.raises(InvalidSettings, match="OPENAI_API_KEY") as caught:
        build_providers(Settings(), {"OPENAI_API_KEY": "sk-1\nX-Evil: 1"})
    assert "Evil" not in str(caught.value)


async def test_closing_what_was_never_used():
    for provider in build_providers(Settings(), {"OPENAI_API_KEY": "k"}).values():
        await provider.close()
        await provider.close()
