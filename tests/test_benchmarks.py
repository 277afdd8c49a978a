"""That the benchmark measures at all; what it finds is asserted nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.__main__ import main
from benchmarks.run import MEASUREMENTS
from tests.conftest import Server

AMOUNTS = ["--runs", "1", "--requests", "20", "--calls", "20", "--slow-requests", "20", "--most-slow-requests", "20",
           "--backlog", "300", "--beside", "100"]  # fmt: skip


def measured(server: Server, path: Path, *arguments: str) -> dict[str, Any]:
    url = ["--database-url", server.url("postgres")]
    main(["--quick", "--no-peers", *AMOUNTS, *url, "--json", str(path), *arguments])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.timeout(900)
def test_every_figure_is_there(server: Server, tmp_path: Path) -> None:
    found = measured(server, tmp_path / "found.json")

    assert found["faults"] == []
    assert set(found["summary"]) == {measurement.name for measurement in MEASUREMENTS}
    assert found["summary"]["bulk"]["pgnexus"]["wal_bytes_per_request"]["median"] > 0
    assert found["summary"]["bulk"]["pgnexus"]["worker_cpu_us_per_request"]["median"] > 0
    assert found["ratios"]["bulk"]["pgnexus"]["median"] > 0
    assert found["about"]["server"]["fsync"] == "off"  # of the tests' server, which it was told to use
    page = (tmp_path / "found.md").read_text()
    assert "| bulk | pgnexus, one by one |" in page
    with psycopg.connect(server.url("postgres")) as connection:
        left = connection.execute("SELECT 1 FROM pg_database WHERE datname LIKE 'pgnexus_benchmark_%'")
        assert left.fetchall() == []


@pytest.mark.timeout(300)
def test_a_part_is_measured_again_and_a_run_goes_on(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    first = measured(server, path, "--only", "slow")
    second = measured(server, path, "--only", "limits")
    third = measured(server, path, "--only", "slow", "--only", "limits", "--resume", "--runs", "2")

    assert set(second["runs"]) == {"slow", "limits"}
    assert second["runs"]["slow"] == first["runs"]["slow"]
    assert all(len(rounds) == 2 for of in third["runs"].values() for rounds in of.values())
    assert third["runs"]["limits"]["pgnexus, limits"][0] == second["runs"]["limits"]["pgnexus, limits"][0]
