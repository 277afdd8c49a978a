"""The programs in examples/ do what they say, each in a process of its own, as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def environment(database_url: str, llmock: Any) -> dict[str, str]:
    llmock.reply("Paris.", times=None)
    return os.environ | {
        "PGNEXUS_DATABASE_URL": database_url,
        "PGNEXUS_DEFAULT_PROVIDER": "openai",
        "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": llmock.base_url("openai"),
        "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
    }


def run(name: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "ask.py",
        "many.py",
        "transactional.py",
        "foreign_producer.py",
    }


def test_ask(environment: dict[str, str], llmock: Any) -> None:
    out = run("ask.py", environment, "What", "is", "it?")
    assert out.startswith("Paris.\nopenai/")
    assert [record.body["messages"][0]["content"] for record in llmock.requests] == ["What is it?"]


def test_many_asks_nothing_twice(environment: dict[str, str], llmock: Any) -> None:
    first, again = run("many.py", environment), run("many.py", environment)
    assert sorted(first.splitlines()) == ["asked now: 3 of 3", "r-1: Paris.", "r-2: Paris.", "r-3: Paris."]
    assert sorted(again.splitlines()) == ["asked now: 0 of 3", "r-1: Paris.", "r-2: Paris.", "r-3: Paris."]
    assert len(llmock.requests) == 3


def test_transactional(environment: dict[str, str], llmock: Any) -> None:
    assert run("transactional.py", environment).splitlines() == [
        "rolled back: a ticket needs a text",
        "summary: Paris.",
        "requests stored for the empty ticket: 0",
    ]
    assert len(llmock.requests) == 1


def test_foreign_producer(environment: dict[str, str]) -> None:
    assert run("foreign_producer.py", environment) == "success from openai: Paris.\n"


@pytest.mark.local_model
def test_ask_the_local_model(database_url: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    out = run("ask.py", environment | {"PGNEXUS_DATABASE_URL": database_url})
    assert "Paris" in out
    assert "local/smollm2-135m-instruct" in out
