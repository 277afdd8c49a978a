"""The model keeps to the laws it is made of, and reads what the benchmarks write."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.model import Model, compared, fitted, main

MODEL = Model(cpu=500e-6, worker_cpu=250e-6, transaction_cpu=400e-6, commit=200e-6, cores=2)


def test_nobody_is_busier_than_always():
    assert replace(MODEL, workers=8).rate() == pytest.approx(2 / MODEL.demand, rel=0.02)
    assert replace(MODEL, cores=64).rate() == pytest.approx(1 / 250e-6, rel=0.02)
    through_the_log = replace(MODEL, cores=64, workers=64, commit=0.1)
    assert through_the_log.rate() == pytest.approx(300 / 0.4, rel=0.02)


def test_few_in_flight_wait_for_the_vendor():
    assert replace(MODEL, in_flight=1, call=1.0).rate() == pytest.approx(1.0, rel=0.01)
    assert replace(MODEL, in_flight=100, call=1.0).rate() == pytest.approx(100, rel=0.01)
    assert replace(MODEL, call=0.2).heap(10) == pytest.approx(10 / 0.2, rel=0.05)


def test_more_in_a_batch_is_never_slower():
    rates = [replace(MODEL, batch=size).rate() for size in (1, 2, 5, 20, 100, 1000)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] / 3


def test_what_it_reads_it_tells_again(tmp_path, capsys):
    cpu = {"caller": 25, "worker": 270, "provider": 80, "postgres": 185}
    bulk = {f"{name}_cpu_us_per_request": value for name, value in cpu.items()}
    bulk |= {"requests_per_second": 2400.0, "writes_per_request": 0.02}
    found = {
        "about": {
            "machine": {"cores": 2},
            "server": {"one_commit_ms": 0.2},
            "plan": {"workers": [2], "slow_delay": 0.2, "slow_requests": 1000, "most_slow_requests": 10_000},
        },
        "runs": {
            "bulk": {"pgnexus": [bulk, {}], "pgnexus, one by one": [bulk]},
            "enqueue": {
                "pgnexus, one caller": [
                    {"caller_cpu_us_per_request": 400, "postgres_cpu_us_per_request": 600}
                ],
                "pgnexus, batches": [{"caller_cpu_us_per_request": 25, "postgres_cpu_us_per_request": 40}],
            },
        },
    }
    model = fitted(found)
    assert model.share == pytest.approx(2400 * 560e-6 / 2)
    assert (model.batch, model.transaction_cpu) == (pytest.approx(200), pytest.approx(935e-6))
    [(what, predicted, measured)] = compared(found, model)
    assert (what, measured) == ("one by one, requests/s", 2400)
    assert predicted == pytest.approx(2400, rel=0.02)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    main([str(path), "--workers", "4", "--cores", "8"])
    told = capsys.readouterr().out
    assert "one by one, requests/s" in told
    assert "with {'workers': 4, 'cores': 8.0}" in told
