"""The figures as tables on the console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.report.figures import Results, summary


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


def cell(figure: dict[str, float] | None) -> str:
    """The median of a figure, and its spread."""
    if figure is None:
        return "-"
    median, least, most = (_short(figure[key]) for key in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
