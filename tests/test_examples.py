"""The programs in examples/ do what they say, each in a process of its own, as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
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


def run(name: str, environment: dict[str, str], *arguments: str, typed: str = "") -> str:
    command = [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=environment, input=typed, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "ask.py",
        "many.py",
        "streaming.py",
        "transactional.py",
        "foreign_producer.py",
        "map_reduce.py",
        "review_with_approval.py",
        "flow_at_run_time.py",
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


def test_streaming(environment: dict[str, str], llmock: Any) -> None:
    llmock.reset().reply("Once upon a time there was a queue.").pace(100)
    *chunks, stored = run("streaming.py", environment).splitlines()
    assert stored == "stored: Once upon a time there was a queue."
    assert "".join(chunk.split(": ", 1)[1] for chunk in chunks) == "Once upon a time there was a queue."


def test_transactional(environment: dict[str, str], llmock: Any) -> None:
    assert run("transactional.py", environment).splitlines() == [
        "rolled back: a ticket needs a text",
        "summary: Paris.",
        "requests stored for the empty ticket: 0",
    ]
    assert len(llmock.requests) == 1


def test_foreign_producer(environment: dict[str, str]) -> None:
    assert run("foreign_producer.py", environment) == "success from openai: Paris.\n"


def test_map_reduce(environment: dict[str, str], llmock: Any, tmp_path: Path) -> None:
    out = run("map_reduce.py", environment)
    assert out == "Paris.\n\ntides.txt: Paris.\nbread.txt: Paris.\nants.txt: Paris.\n"
    assert len(llmock.requests) == 4

    long = tmp_path / "long.txt"
    long.write_text("word " * 1000, encoding="utf-8")
    out = run("map_reduce.py", environment, str(long))
    assert out.splitlines()[2:] == [f"{long}: Paris."] * 3


@pytest.mark.parametrize(
    ("answer", "told", "published"), [("yes", "published: Paris.", 1), ("no", "not published", 0)]
)
def test_review_with_approval(
    environment: dict[str, str], database_url: str, answer: str, told: str, published: int
) -> None:
    out = run("review_with_approval.py", environment, "the sea", typed=f"{answer}\n").splitlines()
    assert (out[0], out[-1]) == ("Paris.", told)
    assert count_published(database_url) == published


def test_a_review_is_decided_by_another_process(environment: dict[str, str], database_url: str) -> None:
    run_id = run("review_with_approval.py", environment).split()[-1]
    assert run("review_with_approval.py", environment, run_id, "yes") == "published: Paris.\n"
    assert count_published(database_url) == 1
    with pytest.raises(AssertionError, match="does not wait for a signal"):
        run("review_with_approval.py", environment, run_id, "yes")
    assert count_published(database_url) == 1


def count_published(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("select to_regclass('published') is not null").fetchone()
        if row is None or not row[0]:
            return 0
        row = connection.execute("select count(*) from published").fetchone()
        assert row is not None
        return int(row[0])


def test_flow_at_run_time(environment: dict[str, str], llmock: Any) -> None:
    out = run("flow_at_run_time.py", environment)
    assert "- steps[0].use: there is no action 'search_reviews'; did you mean 'find_reviews'?" in out
    assert out.splitlines()[-6:-1] == [
        "words: 1",
        "reviews: completed, 1 task(s)",
        "mood: completed, 2 task(s)",
        "verdict: completed, 1 task(s)",
        "words: completed, 1 task(s)",
    ]
    assert len(llmock.requests) == 3


@pytest.mark.local_model
def test_ask_the_local_model(database_url: str) -> None:
    out = run("ask.py", without_keys(database_url))
    assert "Paris" in out
    assert "local/smollm2-135m-instruct" in out


@pytest.mark.local_model
def test_flows_ask_the_local_model(database_url: str) -> None:
    environment = without_keys(database_url)
    assert "\n\ntides.txt: " in run("map_reduce.py", environment)
    assert "\npublished: " in run("review_with_approval.py", environment, typed="yes\n")
    assert "\nwords: completed" in run("flow_at_run_time.py", environment)


def without_keys(database_url: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return environment | {"PGNEXUS_DATABASE_URL": database_url}
