"""What the documents say is true of the code: their blocks run, their links lead somewhere, their lists are whole."""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgnexus
from pgnexus.messages import LLMRequest
from pgnexus.settings import Settings
from pgnexus.testing import FakeLLM
from tests.system import running
from tools import settings_reference

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")])
RUNNING = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("quickstart", "operations", "saving", "providers", "streaming", "observability", "costs")
    ),
]
FLOWS = [ROOT / "docs" / f"{name}.md" for name in ("flows", "coming-from")]
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(pgnexus.__path__, "pgnexus.")
    if not info.name.endswith("__main__")
)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^([ ]*)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start()].count("\n") + 2, textwrap.dedent(m[2])) for m in found]


def called(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str) -> None:
    failed, _ = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_blocks_are_of_their_language(page: Path) -> None:
    for line, text in blocks(page, "python"):
        compile(text, f"{page}:{line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for _, text in blocks(page, "json"):
        json.loads(text)
    for _, text in blocks(page, "toml"):
        tomllib.loads(text)


@pytest.mark.parametrize("page", RUNNING, ids=called)
async def test_python_blocks_run(
    page: Path, database_url: str, llmock: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole programs in a process of their own, the others one after the other with an open `llm`."""
    llmock.reply("Paris.", times=None)
    provider = llmock.base_url("openai")
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    async with running(database_url, provider, default_provider=None) as llm:
        names: dict[str, Any] = {"llm": llm, "url": database_url, "pgnexus": pgnexus}
        for line, text in blocks(page, "python"):
            if "pgnexus.open" in text:
                out = await asyncio.to_thread(run_program, text, database_url, provider)
            else:
                code = compile(text, f"{page}:{line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                done = eval(code, names)
                if inspect.isawaitable(done):
                    await done
                out = capsys.readouterr().out
            if "print(" in text:
                assert out.strip(), f"{page}:{line} prints nothing"


@pytest.mark.parametrize("page", FLOWS, ids=called)
async def test_flows_of_a_page_run(
    page: Path, database_url: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks one after the other; a text behind Python is how what it prints begins."""
    monkeypatch.setenv("PGNEXUS_DATABASE_URL", database_url)
    async with pgnexus.open(nexus=True, providers=FakeLLM(fitting)) as llm:
        names: dict[str, Any] = {"__name__": "page", "llm": llm, "pgnexus": pgnexus}
        for line, language, text, shown in shown_blocks(page):
            if language == "sql":
                with psycopg.connect(database_url) as connection:
                    connection.execute(text)
                continue
            code = compile(text, f"{page}:{line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            done = eval(code, names)
            if inspect.isawaitable(done):
                await done
            out = capsys.readouterr().out
            assert "print(" not in text or out.strip(), f"{page}:{line} prints nothing"
            assert shown is None or out.startswith(shown.rstrip("…\n")), f"{page}:{line} prints {out}"


def shown_blocks(page: Path) -> list[tuple[int, str, str, str | None]]:
    """(line, language, text, what stands below it as its output) of what can be run."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(
        r"^```(python|sql)\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL
    )
    return [(text[: m.start()].count("\n") + 2, m[1], m[2], m[3]) for m in found]


def fitting(request: LLMRequest) -> Any:
    """What a model may answer: JSON of the schema that is asked for, else a text."""
    asked = json.loads(json.dumps(request.model_dump(mode="json")["response_format"] or {}))
    return sample(asked["json_schema"]["schema"], asked["json_schema"]["schema"]) if asked else "Paris."


def sample(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """A value of a JSON schema, as simple as can be."""
    if reference := schema.get("$ref"):
        return sample(root["$defs"][reference.removeprefix("#/$defs/")], root)
    if schema.get("type") == "object":
        return {name: sample(one, root) for name, one in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [sample(schema["items"], root)] * 2
    return {"integer": 1, "number": 1.5, "boolean": True, "string": "Paris."}[schema["type"]]


def run_program(text: str, database_url: str, provider: str) -> str:
    environment = os.environ | {
        "PGNEXUS_DATABASE_URL": database_url,
        "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": provider,
        "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
    }
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", text]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", RUNNING, ids=called)
def test_sql_blocks_run(page: Path, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        for _, text in blocks(page, "sql"):
            connection.execute(text)
        connection.rollback()  # roles belong to the whole server


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert not dead


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_tests_that_are_named_exist(page: Path) -> None:
    """`tests/test_x.py`, `tests/test_x.py::test_y` or `tests/test_x.py::TestX::test_y`."""
    missing = []
    for path, names in re.findall(
        r"`((?:tests|chaos)/[\w/]+\.py)((?:::\w+)*)`", page.read_text(encoding="utf-8")
    ):
        there = ROOT / path
        text = there.read_text(encoding="utf-8") if there.exists() else None
        if text is None or not all(
            re.search(rf"(def|class) {name}\b", text) for name in names.split("::")[1:]
        ):
            missing.append(path + names)
    assert not missing


def test_settings_reference_is_that_of_the_code() -> None:
    written = settings_reference.PAGE.read_text(encoding="utf-8")
    assert written == settings_reference.page(), "run python tools/settings_reference.py"


def test_settings_reference_names_every_setting() -> None:
    written = settings_reference.PAGE.read_text(encoding="utf-8")
    assert {
        name for name in Settings.model_fields if f"| `{name}` | `PGNEXUS_{name.upper()}` |" not in written
    } == set()


@pytest.mark.parametrize("text", [text for _, text in blocks(ROOT / "docs" / "settings.md", "toml")])
def test_settings_file_in_the_reference_is_one(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pgnexus.toml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PGNEXUS_CONFIG", str(tmp_path / "pgnexus.toml"))
    written = Settings(routes=tomllib.loads(text)["routes"]).routes
    assert Settings.load().routes == written != {}


def test_public_names_have_one_sentence_at_least() -> None:
    bare = [name for name in pgnexus.__all__ if not inspect.getdoc(getattr(pgnexus, name))]
    assert bare == []
