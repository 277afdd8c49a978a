"""That the benchmark of the flow engine measures at all; what it finds is asserted nowhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from benchmarks.flow.__main__ import main
from benchmarks.flow.cases import CASES, Case
from benchmarks.flow.measure import measure
from benchmarks.flow.report import ratios
from benchmarks.flow.shapes import SHAPES
from benchmarks.flow.ways import WAYS
from benchmarks.stage.database import MeasuredDatabase
from tests.conftest import Server


def small(case: Case) -> Case:
    """The least of the same kind: cases that differ in their amounts only come to one."""
    return replace(case, name=case.shape, runs=4, width=min(case.width, 7), workers=min(case.workers, 2))


SMALL = {small(case): name for name, case in CASES.items()}
FIGURES = {
    "steps_per_second",
    "ms_per_step",
    "commits_per_step",
    "wal_bytes_per_step",
    "server_cpu_ms_per_step",
    "worker_cpu_ms_per_step",
}


@pytest.mark.parametrize("case", SMALL, ids=SMALL.values())
@pytest.mark.parametrize("way", WAYS)
async def test_every_figure_of_every_case_is_there(server: Server, case: Case, way: str) -> None:
    found = await measure(MeasuredDatabase(server.url("postgres")), case, way, 3)

    assert set(found) == FIGURES
    assert all(value is not None and value >= 0 for value in found.values())


def databases(server: Server) -> set[str]:
    with psycopg.connect(server.url("postgres")) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_a_run_prints_its_command_and_leaves_no_database(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    made: list[str] = []
    create = MeasuredDatabase._create

    async def noted(self: MeasuredDatabase, template: str) -> str:
        made.append(await create(self, template))
        return made[-1]

    monkeypatch.setattr(MeasuredDatabase, "_create", noted)
    arguments = ["--quick", "--case", "chain", "--way", "protocol", "--way", "sql", "--batch", "50"]

    main([*arguments, "--database-url", server.url("postgres"), "--json", str(path)])

    found = json.loads(path.read_text())
    assert set(found["summary"]["chain"]) == {"protocol", "sql"}
    assert list(found["ratios"]) == ["chain: sql to protocol, speed", "chain: protocol to sql, server cpu"]
    assert found["steps"] == {"chain": 1500}
    assert found["command"].startswith("python -m benchmarks.flow --quick --case chain")
    assert "steps per second" in capsys.readouterr().out
    assert made
    assert not databases(server) & set(made)  # others make theirs meanwhile


def test_ratios_compare_within_one_run() -> None:
    def runs(*speeds: float) -> list[dict[str, float | None]]:
        return [
            {"steps_per_second": speed, "ms_per_step": 1000 / speed, "server_cpu_ms_per_step": 100 / speed}
            for speed in speeds
        ]

    found = ratios(
        {
            "wide-100": {"protocol": runs(100, 200), "sql": runs(1000, 1000)},
            "wide-8000": {"sql": runs(500, 500)},
            "workers-1": {"sql": runs(10)},
            "workers-4": {"sql": runs(25)},
        }
    )

    assert found == {
        "wide-100: sql to protocol, speed": 7.5,
        "wide-100: protocol to sql, server cpu": 7.5,
        "sql: wide-8000 to wide-100, cost of a step": 2,
        "sql: wide-8000 to wide-100, server cpu": 2,
        "sql: workers-4 to workers-1, speed": 2.5,
    }


async def test_a_wrong_output_is_no_figure(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.flow.measure.SHAPES", {"chain": SHAPES["chain"][:2]}
    )  # its leaf is another

    with pytest.raises(RuntimeError, match="wrong_outputs"):
        await measure(MeasuredDatabase(server.url("postgres")), small(CASES["chain"]), "sql", 3)
