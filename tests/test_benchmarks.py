"""That the benchmark measures at all; what it finds is asserted nowhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks.plan import QUICK
from benchmarks.run import MEASUREMENTS
from tests.conftest import Server

LEAST = replace(
    QUICK, requests=20, calls=5, half_load_seconds=0.3, slow_requests=20, most_slow_requests=20, enqueued=30,
    enqueued_alone=5, small_backlog=100, backlog=200, beside=100, window=600, bloat_seconds=1.0, streams=2,
    streams_at_once=5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", LEAST)


def measured(server: Server, path: Path, *arguments: str) -> dict[str, Any]:
    url = ["--database-url", server.url("postgres")]
    bench.main(["--quick", "--no-peers", *url, "--json", str(path), *arguments])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


_QUICK = ("bulk", "alone", "enqueue")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [pytest.param(each.name, marks=() if each.name in _QUICK else pytest.mark.soak) for each in MEASUREMENTS],
)
def test_every_turn_has_figures(server: Server, tmp_path: Path, name: str) -> None:
    found = measured(server, tmp_path / "found.json", "--only", name)

    assert found["faults"] == []
    assert set(found["runs"]) == {name}
    assert all(rounds[0] for rounds in found["runs"][name].values())
    assert any("pgnexus" in contestant or name == "backlog" for contestant in found["runs"][name])
    assert found["about"]["server"]["fsync"] == "off"  # of the tests' server, which it was told to use
    page = (tmp_path / "found.md").read_text()
    assert all(f"| {name} | {contestant} |" in page for contestant in found["runs"][name])


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_part_is_measured_again_and_a_run_goes_on(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    first = measured(server, path, "--only", "workers")
    second = measured(server, path, "--only", "limits")
    third = measured(server, path, "--only", "workers", "--only", "limits", "--resume", "--runs", "2")

    assert set(second["runs"]) == {"workers", "limits"}
    assert second["runs"]["workers"] == first["runs"]["workers"]
    assert second["ratios"]["limits"]["pgnexus, limits"]["median"] > 0
    assert all(len(rounds) == 2 for of in third["runs"].values() for rounds in of.values())
    assert third["runs"]["limits"]["pgnexus, limits"][0] == second["runs"]["limits"]["pgnexus, limits"][0]


@pytest.mark.timeout(300)
def test_a_turn_without_figures_is_told_and_the_others_go_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> int:
        return 0

    path = tmp_path / "found.json"
    monkeypatch.setattr("benchmarks.contestants.floor.FloorDriver.stored", lost)
    with pytest.raises(SystemExit):
        measured(server, path, "--only", "slow")
    found = json.loads(path.read_text())
    assert [(fault["contestant"], fault["round"]) for fault in found["faults"]] == [("raw pgmq", 1)]
    assert found["runs"]["slow"]["raw pgmq"] == [{}]
    assert found["runs"]["slow"]["pgnexus"][0]["requests_per_second"] > 0
    assert (
        "slow, raw pgmq, round 1: RuntimeError: 0 of 40 results are stored"
        in (tmp_path / "found.md").read_text()
    )

    monkeypatch.undo()
    monkeypatch.setattr(bench, "QUICK", LEAST)
    assert measured(server, path, "--only", "slow", "--resume")["faults"] == []
