"""That the benchmark of the router measures at all; what it finds is asserted nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.router.__main__ import installed, main
from benchmarks.router.contestants import CONTESTANTS, MODEL, varied
from benchmarks.router.report import ratios
from benchmarks.stage.provider_server import ANSWER, provider_server


@pytest.mark.parametrize("name", [*CONTESTANTS, "varied"])
async def test_every_contestant_gets_the_whole_answer_and_the_first_words_of_a_stream(name: str) -> None:
    if name not in (*installed(), "varied"):
        pytest.skip(f"{name} is not installed")
    async with (
        provider_server(model=MODEL) as server,
        (CONTESTANTS | {"varied": varied})[name](server.base_url) as contestant,
    ):
        assert await contestant.call(1) == await contestant.call(2) == ANSWER
        assert await contestant.first(3) > 0
        assert await server.calls() == 3


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_run_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, table = tmp_path / "found.json", tmp_path / "found.md"
    amounts = ["--rounds", "2", "--calls", "20", "--streams", "5", "--memory", "--memory-calls", "1000"]
    names = ["--contestant", "aiohttp", "--contestant", "our router"]

    main([*amounts, *names, "--json", str(found), "--markdown", str(table)])

    told = json.loads(found.read_text())
    assert told["summary"].keys() == {"speed", "first words", "memory"}
    assert told["summary"]["speed"].keys() == {"aiohttp", "our router"}
    assert told["summary"]["memory"]["our router"]["rss_mb_after_1000"]["median"] > 0
    assert len(told["runs"]["speed"]["aiohttp"]) == 2
    assert "speed: our router to aiohttp" in told["ratios"]
    assert told["command"] in capsys.readouterr().out
    assert "| speed | calls per second | cpu us per call |" in table.read_text()


def test_ratios_compare_within_one_round() -> None:
    def runs(*speeds: float) -> list[dict[str, float | None]]:
        return [{"calls_per_second": speed, "cpu_us_per_call": 1e6 / speed} for speed in speeds]

    found = ratios({"speed": {"aiohttp": runs(1000, 500, 200), "our wire": runs(900, 400, 200)}})

    assert found == {"speed: our wire to aiohttp": 0.9, "speed, cpu: our wire to aiohttp": 1.111}
