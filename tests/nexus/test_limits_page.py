"""docs/limits.md: its settings are some, its program is refused, its SQL runs on both sides."""

from __future__ import annotations

import asyncio
import tomllib
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pgnexus.settings import Settings
from tests.test_docs import ROOT, blocks, run_program

PAGE = ROOT / "docs" / "limits.md"


def test_its_settings() -> None:
    [(_, text)] = blocks(PAGE, "toml")
    settings = Settings.load(**tomllib.loads(text))
    assert settings.limits["openai/gpt-4o"].concurrent_calls == 200
    assert settings.budgets["key:OPENAI_API_KEY"].usd_per_month == Decimal(10_000)


async def test_its_program(database_url: str, llmock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    [(_, text)] = blocks(PAGE, "python")
    said = await asyncio.to_thread(run_program, text, database_url, llmock.base_url("openai"))
    assert "agent:reviewer has tokens_per_day of 5: 0 is spent" in said


def test_its_sql(caller_url: str, nexus_url: str) -> None:
    [(_, text)] = blocks(PAGE, "sql")
    for url in (caller_url, nexus_url):
        with psycopg.connect(url) as connection:
            connection.execute(text)
