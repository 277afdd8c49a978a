"""Everything as one table in Markdown, with the plots below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.report.figures import Spread, summary
from benchmarks.report.ratios import ratios
from benchmarks.report.store import Store
from benchmarks.report.tables import cell

_COLUMNS = {
    "requests_per_second": "requests/s",
    "ratio": "to the floor",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p99.9_ms": "p99.9 ms",
    "caller_cpu_us_per_request": "caller",
    "worker_cpu_us_per_request": "worker",
    "provider_cpu_us_per_request": "provider",
    "postgres_cpu_us_per_request": "postgres",
    "wal_bytes_per_request": "WAL bytes",
    "writes_per_request": "writes",
    "worker_mb_peak": "peak MB",
}
_LEFT_OUT = ("p90_ms", "p95_ms", "worker_mb_before")


def markdown(store: Store, plots: Sequence[Path]) -> str:
    """The whole page."""
    return "\n".join([*_head(store), *_table(store), *_faults(store), *_pictures(plots), ""])


def _head(store: Store) -> Iterator[str]:
    about = store.about
    machine, server, plan = about["machine"], about["server"], about["plan"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    settings = ", ".join(f"{name} {value}" for name, value in server.items() if name != "server_version")
    yield "# Benchmarks\n"
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mb']:,} MB; {machine['system']};"
        f" Python {machine['python']}; commit {machine['commit']}; PostgreSQL {server['server_version']}; {packages}."
    )
    yield f"\nServer: {settings}. Plan: {', '.join(f'{name} {value}' for name, value in plan.items())}."
    yield f"\nFrom {about['began']} to {about['ended']}; load {about['load']}.\n"
    yield "Medians, least to most of the rounds in brackets. Caller to postgres: CPU, microseconds a request;"
    yield "WAL bytes and writes (transactions that write) are a request's, too. The ratio is to the floor of the same"
    yield "round: raw pgmq, unless the measurement says otherwise; of speeds, or of times where there are none.\n"


def _table(store: Store) -> Iterator[str]:
    names = ["measurement", "contestant", *_COLUMNS.values(), "rounds", "also"]
    yield f"| {' | '.join(names)} |"
    yield f"| --- | --- |{' ---: |' * (len(_COLUMNS) + 1)} --- |"
    shares, figures = ratios(store.results, store.floors), summary(store.results)
    for measurement, contestants in figures.items():
        for contestant, found in contestants.items():
            ratio = shares.get(measurement, {}).get(contestant)
            whole = {**found, **({} if ratio is None else {"ratio": ratio})}
            rounds = sum(bool(one) for one in store.results[measurement][contestant])
            yield _row(measurement, contestant, whole, rounds)
    yield ""
    for measurement, title in store.titles.items():
        if measurement in figures:
            yield f"- *{measurement}*: {title}."


def _row(measurement: str, contestant: str, found: Mapping[str, Spread], rounds: int) -> str:
    cells = [cell(found[key]) if key in found else "" for key in _COLUMNS]
    also = [
        f"{key.replace('_', ' ')} {cell(spread)}"
        for key, spread in found.items()
        if key not in _COLUMNS and key not in _LEFT_OUT
    ]
    return f"| {' | '.join([measurement, contestant, *cells, str(rounds), '; '.join(also)])} |"


def _faults(store: Store) -> Iterator[str]:
    if store.faults:
        yield "\nWithout a figure, for the counts were wrong or something failed:\n"
    for fault in store.faults:
        yield f"- {fault['measurement']}, {fault['contestant']}, round {fault['round']}: {fault['error']}"


def _pictures(plots: Sequence[Path]) -> Iterator[str]:
    for path in plots:
        yield f"\n![{path.stem}]({path.name})"
