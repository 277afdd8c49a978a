"""That the benchmark measures at all; what it finds is asserted nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from benchmarks.__main__ import main
from tests.conftest import Server


@pytest.mark.timeout(300)
def test_every_figure_is_there(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    amounts = ["--runs", "1", "--requests", "20", "--calls", "20", "--slow-requests", "20"]

    main([*amounts, "--database-url", server.url("postgres"), "--json", str(path)])

    found = json.loads(path.read_text())
    assert set(found["summary"]) == {"bulk", "slow", "alone, one process", "alone, two processes"}
    assert all("pgnexus" in figures and "raw pgmq" in figures for figures in found["summary"].values())
    assert len(found["ratios"]) == 5
    assert found["summary"]["bulk"]["pgnexus"]["wal_bytes_per_request"]["median"] > 0
    assert found["server"]["fsync"] == "off"  # of the tests' server, which it was told to use
    assert "pgnexus, one by one" in capsys.readouterr().out
    with psycopg.connect(server.url("postgres")) as connection:
        left = connection.execute("SELECT 1 FROM pg_database WHERE datname LIKE 'pgnexus_benchmark_%'")
        assert left.fetchall() == []
