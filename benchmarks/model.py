"""What the figures of a run say of other numbers of workers, cores, batches and disks, checked against measured ones.

python -m benchmarks.model build/bench/bench.json              # predicted beside measured, and the error
python -m benchmarks.model build/bench/bench.json --workers 8 --cores 16 --commit-ms 1.5 --batch 50 --call-ms 800

The arithmetic. A request needs `D` seconds of processors: of its caller, a worker, PostgreSQL, and, where the vendor
runs on the same machine, of that. A transaction costs `F` seconds whatever it does, and `L` until it is on the disk; a
request goes through four of them, each shared by a batch of `b`. So it needs `D + 4F/b` of the processors and `4L/b` of
the log.

- No resource can be busier than always (the utilization law, U = X·D: Denning and Buzen, "The operational analysis of
  queueing network models", ACM Computing Surveys 10 (3), 1978): with `c` cores, of which the system gets the share `s`,
  X is at most s·c / (D + 4F/b); with `n` workers, each one thread, at most s·n / Dw; through one log at most b / 4L.
- With N requests in flight that wait Z seconds each for the vendor, X is at most N / (Z + R). In between, X is that of
  a closed network by mean value analysis (Reiser and Lavenberg, Journal of the ACM 27 (2), 1980): at each station,
  R(k) = D·(1 + Q(k-1)), where Q is the queue that an arrival finds; X(k) = k / (Z + sum of R); Q(k) = X(k)·R(k). A
  station of c servers is one server with D/c and a delay of D·(c-1)/c (Seidmann, Schweitzer and Shalev-Oren, 1987).
- A heap of M requests is done after Z + M/X, for the first answers come after Z.

D and the share s are read from one point, pgnexus in bulk with one worker; F from storing requests one at a time and in
batches; L from the server's own commit. All other points are predictions. What the model knows nothing of: processes
that wait for the same lock, and a machine that others use at one time more than at another.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_TRANSACTIONS = 4  # on the way of a request
_GROUPS = ("caller", "worker", "provider", "postgres")


@dataclass(frozen=True, slots=True)
class Model:
    """Seconds of one request, and who is there to spend them."""

    cpu: float  # D: of all processors that it needs among many
    worker_cpu: float  # Dw: the worker's part of it
    transaction_cpu: float  # F
    commit: float  # L
    cores: float  # c
    share: float = 1.0  # s: of the cores, that the system gets
    workers: int = 1
    batch: float = 300.0  # b
    in_flight: int = 1000  # N of one worker
    call: float = 0.0  # Z

    @property
    def demand(self) -> float:
        """Of all processors, for one request."""
        return self.cpu + _TRANSACTIONS * self.transaction_cpu / self.batch

    @property
    def logging(self) -> float:
        """Of the log, for one request."""
        return _TRANSACTIONS * self.commit / self.batch

    def rate(self) -> float:
        """Requests a second, as long as there are enough."""
        cores = self.cores * self.share
        found = _closed(
            (self.demand / max(cores, 1.0), self.logging), self._delay(cores), self.in_flight * self.workers
        )
        return min(found, cores / self.demand, self.workers * self.share / self.worker_cpu)

    def heap(self, requests: int) -> float:
        """Requests a second of so many that come at once, the vendor's time included."""
        return requests / (self.call + requests / self.rate())

    def alone(self) -> float:
        """Seconds of one request on an idle system."""
        one = replace(self, batch=1.0)
        return (one.demand / min(1.0, self.share * self.cores)) + one.logging + self.call

    def _delay(self, cores: float) -> float:
        return self.call + (self.demand / cores * (cores - 1) if cores > 1 else 0.0)


def _closed(demands: tuple[float, ...], delay: float, requests: int) -> float:
    """Mean value analysis of so many requests that go round."""
    queues, rate = [0.0] * len(demands), 0.0
    for number in range(1, requests + 1):
        times = [demand * (1 + queue) for demand, queue in zip(demands, queues, strict=True)]
        rate = number / (delay + sum(times))
        queues = [rate * time for time in times]
    return rate


def fitted(found: Mapping[str, Any]) -> Model:
    """The model of a run of `python -m benchmarks`: its bulk with one worker, and what storing requests cost."""
    runs = found["runs"]
    bulk, one, many = (
        _medians(runs[measurement][name])
        for measurement, name in (
            ("bulk", "pgnexus"), ("enqueue", "pgnexus, one caller"), ("enqueue", "pgnexus, batches"),
        )
    )  # fmt: skip
    cpu = sum(bulk[f"{group}_cpu_us_per_request"] for group in _GROUPS) / 1e6
    fixed = sum(
        one[f"{group}_cpu_us_per_request"] - many[f"{group}_cpu_us_per_request"]
        for group in ("caller", "postgres")
    )
    cores = float(found["about"]["machine"]["cores"])
    batch = _TRANSACTIONS / max(bulk["writes_per_request"], 1e-6)
    fixed = max(fixed, 0.0) / 1e6
    return Model(
        cpu=cpu - _TRANSACTIONS * fixed / batch,
        worker_cpu=bulk["worker_cpu_us_per_request"] / 1e6,
        transaction_cpu=fixed,
        commit=float(found["about"]["server"]["one_commit_ms"]) / 1000,
        cores=cores,
        share=min(1.0, bulk["requests_per_second"] * cpu / cores),
        batch=batch,
    )


def compared(found: Mapping[str, Any], model: Model) -> Iterator[tuple[str, float, float]]:
    """(what, predicted, measured) of every point that the run has and the model has not seen."""
    runs, plan = found["runs"], found["about"]["plan"]
    delay = float(plan["slow_delay"])
    slow = replace(model, call=delay)
    points: list[tuple[str, str, str, float, str]] = [
        ("one by one, requests/s", "bulk", "pgnexus, one by one", model.rate(), "requests_per_second"),
        *(
            (f"{count} workers, requests/s", "workers", f"pgnexus, {count} workers",
             replace(model, workers=count).rate(), "requests_per_second")
            for count in plan["workers"]
        ),
        (f"{plan['slow_requests']:,} slow calls, requests/s", "slow", "pgnexus",
         slow.heap(plan["slow_requests"]), "requests_per_second"),
        (f"{plan['most_slow_requests']:,} slow calls, requests/s", "slow, many", "pgnexus",
         replace(slow, in_flight=plan["most_slow_requests"]).heap(plan["most_slow_requests"]), "requests_per_second"),
        ("a call alone, p50 in ms", "alone", "pgnexus, two processes", model.alone() * 1000, "p50_ms"),
    ]  # fmt: skip
    for what, measurement, name, predicted, figure in points:
        if rounds := [one for one in runs.get(measurement, {}).get(name, []) if one]:
            yield what, predicted, _medians(rounds)[figure]


def _medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    rounds = [one for one in rounds if one]
    return {
        name: statistics.median(one[name] for one in rounds)
        for name in rounds[0]
        if all(isinstance(one.get(name), (int, float)) for one in rounds)
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__.splitlines()[0])
    parser.add_argument("found", type=Path, help="the JSON of a run of python -m benchmarks")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cores", type=float)
    parser.add_argument(
        "--share", type=float, help="of the cores, that the system gets; as it was in the run"
    )
    parser.add_argument("--batch", type=float)
    parser.add_argument("--commit-ms", type=float)
    parser.add_argument("--call-ms", type=float)
    given = parser.parse_args(arguments)
    found = json.loads(given.found.read_text())
    try:
        model = fitted(found)
    except KeyError as lacking:
        parser.error(f"{given.found} has no {lacking}: it takes a run of bulk and of enqueue")
    print(
        f"read from the run: {model.cpu * 1e6:.0f} us of processors a request, "
        f"{model.worker_cpu * 1e6:.0f} of them the worker's; "
        f"{model.transaction_cpu * 1e6:.0f} us a transaction; {model.commit * 1e3:.2f} ms a commit; batches of "
        f"{model.batch:.0f}; {model.share:.0%} of {model.cores:g} cores; load {found['about'].get('load', 'not told')}"
    )
    print(f"{'':>36} {'predicted':>10} {'measured':>10} {'error':>7}")
    for what, predicted, measured in compared(found, model):
        print(f"{what:>36} {predicted:10,.1f} {measured:10,.1f} {predicted / measured - 1:7.0%}")
    over = {
        "workers": given.workers,
        "cores": given.cores,
        "share": given.share,
        "batch": given.batch,
        "commit": None if given.commit_ms is None else given.commit_ms / 1000,
        "call": None if given.call_ms is None else given.call_ms / 1000,
    }
    if changed := {name: value for name, value in over.items() if value is not None}:
        other = replace(model, **changed)
        print(f"with {changed}: {other.rate():,.0f} requests/s, a call alone {other.alone() * 1000:.1f} ms")


if __name__ == "__main__":
    main()
