"""A profile as plain text, each figure also a request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.profile.load import Profile, Rows
from benchmarks.profile.sampling import hot_functions


def text(found: Profile, top: int, width: int, stacks: Path | None) -> str:
    """Everything that was found."""
    lines = [
        f"{found.requests:,} requests in {found.seconds:.2f} s: {found.requests / found.seconds:,.0f} a second;"
        f" CPU us a request: worker {found.worker_us:.0f}, server {found.server_us:.0f}"
    ]
    lines += _statements(found, top, width)
    lines += _functions(found, top)
    lines += _wal(found, top)
    lines += _tables(found)
    if stacks is not None and stacks.exists():
        rows = [(f"{own:.1%}", f"{whole:.1%}", name) for name, own, whole in hot_functions(stacks)[:top]]
        lines += _table("worker's Python (py-spy)", ("own", "with callees", "function"), rows)
    return "\n".join(lines)


def _statements(found: Profile, top: int, width: int) -> Iterator[str]:
    rows = [
        (
            "*" if row["is_outer"] else "",
            f"{row['ms']:.0f}",
            f"{row['plan_ms']:.0f}",
            f"{(row['ms'] + row['plan_ms']) * 1000 / found.requests:.1f}",
            f"{row['calls']:,}",
            f"{row['calls'] / found.requests:.3f}",
            f"{row['rows'] / found.requests:.2f}",
            f"{row['wal_bytes'] / found.requests:,.0f}",
            f"{row['blocks'] / found.requests:.1f}",
            row["query"][:width],
        )
        for row in found.statements[:top]
    ]
    names = (
        "*",
        "ms",
        "plan ms",
        "us/req",
        "calls",
        "calls/req",
        "rows/req",
        "wal B/req",
        "blocks/req",
        "statement",
    )
    yield from _table("statements (* sent by a client; the others run inside those)", names, rows)


def _functions(found: Profile, top: int) -> Iterator[str]:
    rows = [
        (f"{r['self_ms'] * 1000 / found.ever:.1f}", f"{r['ms'] * 1000 / found.ever:.1f}", f"{r['calls']:,}",
         f"{r['calls'] / found.ever:.3f}", r["function"])
        for r in found.functions[:top]
    ]  # fmt: skip
    yield from _table("functions", ("self us/req", "total us/req", "calls", "calls/req", "function"), rows)


def _wal(found: Profile, top: int) -> Iterator[str]:
    if not found.wal:
        return
    for title, keys in (
        ("WAL by relation", ("relation",)),
        ("WAL by relation and kind", ("relation", "kind")),
    ):
        rows = _wal_rows(found.wal, keys, found.requests)
        yield from _table(
            title, ("B/req", "of it page images", "records/req", " and ".join(keys)), rows[:top]
        )


def _wal_rows(wal: Rows, keys: tuple[str, ...], requests: int) -> list[tuple[str, ...]]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in wal:
        name = " ".join(str(row[key]) for key in keys)
        for place, key in enumerate(("bytes", "fpi_bytes", "records")):
            sums[name][place] += float(row[key]) / requests
    total = [sum(column) for column in zip(*sums.values(), strict=True)]
    ordered = [("(all)", total), *sorted(sums.items(), key=lambda item: -item[1][0])]
    return [
        (f"{size:,.0f}", f"{images:,.0f}", f"{records:.2f}", name)
        for name, (size, images, records) in ordered
    ]


def _tables(found: Profile) -> Iterator[str]:
    names = (
        "inserted",
        "updated",
        "updated_hot",
        "deleted",
        "idx_scan",
        "idx_tup_fetch",
        "seq_scan",
        "seq_tup_read",
    )
    rows = [
        (*(f"{row[name] / found.ever:.3f}" for name in names), f"{row['bytes'] / 1e6:.1f}", row["table"])
        for row in found.tables
    ]
    yield from _table("tables, rows and scans a request", (*names, "MB", "table"), rows)


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Right-aligned columns, but for the last."""
    yield f"\n{title}"
    widths = [max(len(row[place]) for row in (names, *rows)) for place in range(len(names) - 1)]
    for row in (names, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()
