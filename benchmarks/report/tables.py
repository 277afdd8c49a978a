"""The figures as tables on the console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.report.figures import Results, Spread, summary

_BRIEF = {
    "requests_per_second": "requests/s",
    "ratio": "to floor",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "worker_cpu_us_per_request": "worker us",
    "postgres_cpu_us_per_request": "server us",
    "wal_bytes_per_request": "WAL B",
}


def show_tables(results: Results, console: Console) -> None:
    """Print one table a measurement."""
    for measurement, contestants in summary(results).items():
        table = Table(title=measurement, title_justify="left", caption="median (least to most)")
        table.add_column("")
        for name in contestants:
            table.add_column(name, justify="right")
        for key in dict.fromkeys(key for figures in contestants.values() for key in figures):
            cells = [cell(figures.get(key)) for figures in contestants.values()]
            table.add_row(key.replace("_", " "), *cells)
        console.print(table)


def show_rows(results: Results, shares: dict[str, dict[str, Spread]], console: Console) -> None:
    """Print one row a contestant, with the figures that most of them have; all others are in the file."""
    table = Table(caption="median (least to most); us are of CPU, B of WAL, each a request's")
    for name in ("", "", *_BRIEF.values()):
        table.add_column(name, justify="right" if name else "left")
    for measurement, contestants in summary(results).items():
        for contestant, found in contestants.items():
            ratio = shares.get(measurement, {}).get(contestant)
            whole = {**found, **({} if ratio is None else {"ratio": ratio})}
            table.add_row(measurement, contestant, *(cell(whole.get(key)) for key in _BRIEF))
    console.print(table)


def cell(figure: dict[str, float] | None) -> str:
    """The median of a figure, and its spread."""
    if figure is None:
        return "-"
    median, least, most = (_short(figure[key]) for key in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
