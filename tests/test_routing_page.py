"""docs/routing.md: its settings are settings, its programs run, and they print what stands below them."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from system import running

from pgnexus.cli import app
from pgnexus.complexity import TASK_COMPLEXITY
from pgnexus.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "routing.md"
TEXT = PAGE.read_text(encoding="utf-8")
[TOML] = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SHOWN = re.findall(r"^```(python|sh)\n(.*?)^```\n\n```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pgnexus.toml").write_text(TOML, encoding="utf-8")
    monkeypatch.setenv("PGNEXUS_CONFIG", str(tmp_path / "pgnexus.toml"))
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-test")


def told(command: str) -> str:
    words = shlex.split(command.splitlines()[-1])
    ended = typer.testing.CliRunner().invoke(app, words[1:])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


@pytest.mark.parametrize(("command", "shown"), [(code, text) for kind, code, text in SHOWN if kind == "sh"])
def test_explanations_are_what_the_command_prints(command: str, shown: str) -> None:
    """As far as it is shown: the vendors that are not on a route are many."""
    assert told(command).startswith(shown.rstrip("…\n"))


def test_an_explanation_as_json() -> None:
    [found] = [json.loads(line) for line in told("pgnexus models --explain architect --json").splitlines()]
    assert (found["route"], found["from_settings"]) == ("*/architect", True)
    assert found["considered"][0]["model"] == "openai/gpt-6.1-sol"
    assert found["rules"]["order"] == "price"


@pytest.mark.parametrize("words", ["complx", "simple architect extra", "--tokens -1"])
def test_an_explanation_of_nothing_that_exists(words: str) -> None:
    ended = typer.testing.CliRunner().invoke(app, ["models", "--explain", *words.split()])
    assert ended.exit_code == 2


async def test_programs_print_what_stands_below_them(database_url: str, llmock: Any, capsys: Any) -> None:
    blocks = [(code, text) for kind, code, text in SHOWN if kind == "python"]
    assert len(blocks) == len(re.findall(r"^```python$", TEXT, re.MULTILINE)) == 3
    async with running(database_url, llmock.base_url(), routes=Settings.load().routes) as llm:
        names: dict[str, Any] = {"llm": llm}
        for code, shown in blocks:
            done = eval(compile(code, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.isawaitable(done):
                await done
            assert capsys.readouterr().out == shown


def test_the_table_of_task_types_is_whole() -> None:
    for complexity in ("simple", "medium", "complex"):
        [row] = re.findall(rf"^\| `{complexity}` \| (`.*) \|$", TEXT, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row)) == {k for k, v in TASK_COMPLEXITY.items() if v == complexity}
