"""The figures as pictures, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.report.figures import Spread, summary
from benchmarks.report.store import Store
from benchmarks.stage.quantiles import SHARES
from benchmarks.stage.spending import GROUPS

Of = dict[str, dict[str, Spread]]  # contestant → figure → its spread


def plots(store: Store, directory: Path) -> list[Path]:
    """Draw all for which there are figures."""
    if find_spec("matplotlib") is None:
        return []
    import matplotlib  # noqa: PLC0415 - an extra

    matplotlib.use("svg")
    found = summary(store.results)
    drawn = []
    for name, measurements, draw in (
        ("throughput", ("bulk", "workers"), _throughput),
        ("slow-calls", ("slow", "slow, many"), _throughput),
        ("accepted", ("enqueue",), _throughput),
        ("cpu", ("bulk", "workers", "limits"), _cpu),
        ("wal", ("bulk", "workers", "enqueue"), _wal),
        ("latency-idle", ("alone",), _latency),
        ("latency-half-load", ("half load",), _latency),
        ("backlog", ("backlog",), _throughput),
    ):
        of = {
            contestant if len(measurements) == 1 else f"{measurement}: {contestant}": figures
            for measurement in measurements
            for contestant, figures in found.get(measurement, {}).items()
        }
        if of:
            drawn += _draw(directory / f"{name}.svg", of, draw)
    for name, samples in store.samples.items():
        drawn += _draw(directory / f"{name.replace(', ', '-').replace(' ', '-')}.svg", samples, _growth)
    return drawn


def _draw(path: Path, what: Any, draw: Callable[[Any, Any], bool]) -> list[Path]:
    from matplotlib import pyplot  # noqa: PLC0415 - an extra

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    try:
        if not draw(axes, what):
            return []
        figure.savefig(path)
        return [path]
    finally:
        pyplot.close(figure)


def _throughput(axes: Any, of: Of) -> bool:
    return _bars(axes, of, "requests_per_second", "requests/s: median, least and most")


def _wal(axes: Any, of: Of) -> bool:
    return _bars(axes, of, "wal_bytes_per_request", "WAL bytes a request")


def _bars(axes: Any, of: Of, key: str, title: str) -> bool:
    spreads = {name: figures[key] for name, figures in of.items() if key in figures}
    names, values = list(spreads), [one["median"] for one in spreads.values()]
    below = [one["median"] - one["least"] for one in spreads.values()]
    above = [one["most"] - one["median"] for one in spreads.values()]
    axes.barh(names, values, xerr=(below, above), capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    return bool(names)


def _cpu(axes: Any, of: Of) -> bool:
    names = [name for name, figures in of.items() if "postgres_cpu_us_per_request" in figures]
    left = [0.0] * len(names)
    for group in GROUPS:
        key = f"{group}_cpu_us_per_request"
        values = [of[name][key]["median"] if key in of[name] else 0.0 for name in names]
        axes.barh(names, values, left=left, label=group)
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("CPU, microseconds a request")
    axes.legend()
    return bool(names)


def _latency(axes: Any, of: Of) -> bool:
    labels = [f"p{share:g}" for share in SHARES]
    for name, figures in of.items():
        values = [figures[f"{label}_ms"]["median"] for label in labels if f"{label}_ms" in figures]
        axes.plot(labels[: len(values)], values, marker="o", label=name)
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds")
    axes.legend()
    return bool(of)


def _growth(axes: Any, samples: Sequence[dict[str, Any]]) -> bool:
    seconds = [sample["seconds"] for sample in samples]
    for part in ("queues", "others"):
        for what in ("table_mb", "index_mb"):
            values = [sample.get(f"{part}_{what}") for sample in samples]
            axes.plot(seconds, values, label=f"{part}, {what.replace('_mb', '')}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("MB")
    dead = axes.twinx()
    dead.plot(seconds, [sample.get("queues_dead") for sample in samples], "k:", label="dead rows in queues")
    dead.set_ylabel("dead rows in queues (dotted)")
    held = [sample["seconds"] for sample in samples if sample["held"]]
    if held:
        axes.axvspan(held[0], held[-1], alpha=0.1, label="a transaction is open")
    axes.legend(loc="upper left")
    return len(samples) > 1
