"""That the benchmark of pruning measures at all; what it finds is asserted nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.retention import main
from tests.conftest import Server


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_all_that_is_old_goes_beside_the_load(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    amounts = ["--runs", "1", "--old", "900", "--requests", "20", "--way", "pruning"]
    main([*amounts, "--database-url", server.url("postgres"), "--json", str(path)])
    [figures] = json.loads(path.read_text())["pruning"]
    assert figures["rows_in_months"] + figures["rows_one_by_one"] == 900
    assert figures["rows_in_months"] >= 300  # more in the first days of a month
    assert figures["requests_per_second"] > 0
    assert figures["results_mb_after"] > 0
