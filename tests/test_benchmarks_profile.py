"""That the profile tells what a request costs; what it finds is asserted nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.profile.__main__ import main
from benchmarks.profile.server import DEBIAN


@pytest.mark.skipif(not (DEBIAN / "postgres").exists(), reason="needs a PostgreSQL with contrib")
def test_every_kind_of_count_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--requests", "20", "--explain", "1", "--out", str(tmp_path)])

    found = json.loads((tmp_path / "profile.json").read_text())
    assert any("nexus.settle" in row["query"] and row["is_outer"] for row in found["statements"])
    assert any(not row["is_outer"] for row in found["statements"])
    assert any(row["function"] == "pgnexus.enqueue" for row in found["functions"])
    assert any(row["relation"].startswith("pgnexus.job_results") for row in found["wal"])
    assert any(row["table"] == "pgmq.q_ai_requests" and row["inserted"] >= 20 for row in found["tables"])
    assert "Insert on step_states" in (tmp_path / "plans.log").read_text()
    assert "WAL by relation" in capsys.readouterr().out
