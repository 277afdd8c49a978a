"""The tests on the page for users are tests."""

from __future__ import annotations

import inspect
from typing import Any

from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "testing.md"


async def test_the_tests_on_the_page_pass(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PGNEXUS_TEST_DATABASE_URL", server.url("postgres"))
    names: dict[str, Any] = {"__name__": "page"}
    for line, text in blocks(PAGE, "python"):
        exec(compile("\n" * (line - 1) + text, str(PAGE), "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) >= 8
    for test in tests:
        if "database_url" in inspect.signature(test).parameters:
            async with names["temporary_database"]() as url:
                await test(url)
        elif inspect.isawaitable(done := test()):
            await done
