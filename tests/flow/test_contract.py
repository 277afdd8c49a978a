"""The engine's SQL as its callers see it: one file a test, each in a transaction that is rolled back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.conftest import Server

CONTRACT = Path(__file__).parent / "contract"
TEMPLATE = "template_pgnexus"
AREAS = {
    "definition",
    "start",
    "claim",
    "inputs",
    "completion",
    "map_aggregation",
    "type_violations",
    "failure_and_retry",
    "exhaustion",
    "conditions",
    "cascades",
    "events",
    "stalls",
    "pruning",
    "shapes",
    "faults",
}
FILES = sorted(CONTRACT.glob("*/*.sql"))
ASSERTION = re.compile(r"\bcheck_\.(?:ok|is|rows|empty|throws|violates|due)\s*\(")


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def assertions(path: Path) -> int:
    """How many assertions are written in a file."""
    text = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
    return len(ASSERTION.findall(text))


@pytest.fixture(scope="module")
def contract_url(server: Server) -> Iterator[str]:
    """One database for all files: they leave nothing behind."""
    database = server.create(template=TEMPLATE)
    with psycopg.connect(server.url(database)) as connection:
        connection.execute((CONTRACT / "assertions.sql").read_text(encoding="utf-8"))
    yield server.url(database)
    server.drop(database)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_contract(contract_url: str, path: Path) -> None:
    with psycopg.connect(contract_url) as connection:
        connection.execute(path.read_text(encoding="utf-8"))
        row = connection.execute("select current_setting('check_.count', true)").fetchone()
        connection.rollback()
    assert row is not None
    held = int(row[0] or 0)
    assert held >= assertions(path), f"only {held} of the {assertions(path)} assertions ran"


def test_an_assertion_can_fail(contract_url: str) -> None:
    fails = [
        "select check_.ok(null, 'x')",
        "select check_.is('null'::jsonb, null, 'x')",
        "select check_.is(count(*), 1, 'x') from pg_class where false",
        "select check_.rows('values (1), (2)', 'values (2), (1)', 'x')",
        "select check_.rows('values (null::text)', 'values ('''')', 'x')",
        "select check_.empty('select 1', 'x')",
        "select check_.throws('select 1', 'P0001', null, 'x')",
        "select check_.throws('select 1 / 0', '22012', 'other words', 'x')",
        "select check_.violates('select 1 / 0', 'some_check', 'x')",
        "select check_.due(now() + interval '61 s', interval '30 s', 'x')",
    ]
    with psycopg.connect(contract_url, autocommit=True) as connection:
        for statement in fails:
            with pytest.raises(psycopg.errors.AssertFailure, match=r"^x: got"):
                connection.execute(statement)


def test_every_area_has_files_and_every_file_has_assertions() -> None:
    assert {path.parent.name for path in FILES} == AREAS
    assert [name(path) for path in FILES if assertions(path) == 0] == []
