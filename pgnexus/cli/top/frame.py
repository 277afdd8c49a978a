"""`pgnexus top`: one frame, as wide and high as there is room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgnexus.cli.output import duration, money
from pgnexus.cli.top.watcher import Seen
from pgnexus.watch.view import CallsNow, LimitNow, QueueNow, View

_WIDE = 120  # columns from which two tables stand side by side
_FULL = 0.8  # the share of a limit from which it is worth a colour


def frame(seen: Seen, width: int, height: int | None = None) -> RenderableType:
    """What was seen; without ``height`` all of it, else what matters most of it."""
    view = seen.view
    lines: list[RenderableType] = []
    if seen.trouble is not None:
        lines.append(Text(f"the database does not answer; looking again: {seen.trouble}", "bad"))
    if view is None:
        return Group(*lines)
    lines += [_head(view), _rates(view, seen)]
    queues, models = _busy(view.queues), view.calls
    others = _others(view)
    # what is left of the height goes to the tables: queues first, for they are few
    room = None if height is None else max(4, height - len(lines) - len(others) - 1)
    if width >= _WIDE:
        tables = Table.grid(padding=(0, 4))
        tables.add_row(_queues(queues, _rest(room, 3)), _models(models, _rest(room, 3)))
        lines += [Text(), tables]
    else:
        shown = len(queues) if room is None else min(len(queues), max(2, (room - 6) // 2))
        lines += [_queues(queues, shown), _models(models, _rest(room, shown + 6))]
    return Group(*lines, *others)


def _rest(room: int | None, taken: int) -> int | None:
    return None if room is None else max(1, room - taken)


def _head(view: View) -> Text:
    alive = f"{view.instances} nexus" if view.instances else "no nexus alive"
    parked = sum(one.requests for one in view.parked)
    parts = [
        (f"pgnexus top {view.at:%H:%M:%S}", "bold"),
        (alive, "good" if view.instances else "bad"),
        (f"{view.in_flight:,} in flight", ""),
        (f"{parked:,} parked", "warn" if parked else ""),
        (f"{view.waiting_for_retry:,} to retry", "warn" if view.waiting_for_retry else ""),
    ]
    return _joined(parts)


def _rates(view: View, seen: Seen) -> Text:
    total = view.total
    per_minute = 60 / view.window
    parts = [
        (f"{total.calls / view.window:,.1f} calls/s", ""),
        (f"{total.tokens * per_minute:,.0f} tokens/min", ""),
        (f"{_dollars(total.cost, 3600 / view.window)}/h", ""),
    ]
    if total.calls:
        parts.insert(1, (f"{_share(total)} failed", "warn" if total.failed else ""))
        parts.append((f"p50 {duration(total.p50_ms)}, p95 {duration(total.p95_ms)}", ""))
    if seen.spent is not None:
        today, month = seen.spent
        parts.append((f"{money(today.cost)} today, {money(month.cost)} this month", "key"))
    return _joined(parts)


def _joined(parts: Iterable[tuple[str, str]]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for n, (words, style) in enumerate(parts):
        line.append(" · " if n else "", "quiet")
        line.append(words, style)
    return line


def _busy(queues: Sequence[QueueNow]) -> list[QueueNow]:
    """The lanes and the results, and of the other queues those with something in them, the fullest first."""
    ours = [one for one in queues if one.queue.startswith("ai_")]
    others = [one for one in queues if not one.queue.startswith("ai_") and one.depth]
    return ours + sorted(others, key=lambda one: -one.depth)


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column(names[0], no_wrap=True, overflow="ellipsis")
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _queues(queues: Sequence[QueueNow], most: int | None) -> Table:
    table = _table("queue", "depth", "ready", "oldest")
    for one in queues[:most]:
        oldest = "" if one.oldest_seconds is None else duration(max(0, one.oldest_seconds) * 1000)
        table.add_row(one.queue, f"{one.depth:,}", f"{one.ready:,}", oldest)
    _more(table, queues, most)
    return table


def _models(calls: Sequence[CallsNow], most: int | None) -> Table:
    table = _table("model", "calls", "failed", "p50", "p95", "tokens", "cost")
    for one in sorted(calls, key=lambda one: -one.calls)[:most]:
        table.add_row(
            f"{one.provider}/{one.model}",
            f"{one.calls:,}",
            Text(_share(one), "warn" if one.failed else ""),
            duration(one.p50_ms),
            duration(one.p95_ms),
            f"{one.tokens:,}",
            "" if one.cost is None else money(one.cost),
        )
    _more(table, calls, most)
    return table


def _more(table: Table, rows: Sequence[object], most: int | None) -> None:
    if most is not None and len(rows) > most:
        table.add_row(Text(f"… {len(rows) - most} more", "quiet"))


def _others(view: View) -> list[Text]:
    """A line each for what is not always there."""
    lines = []
    if view.parked:
        parked = [(f"{one.scope} {one.requests:,}", "") for one in view.parked]
        lines.append(_named("parked", parked))
    failures = [
        (f"{one.provider}/{one.model} {outcome} {calls:,}", "warn")
        for one in view.calls
        for outcome, calls in sorted(one.failures.items(), key=lambda item: -item[1])
    ]
    if failures:
        lines.append(_named("failed", failures))
    if view.breakers:
        breakers = [
            (
                f"{one.provider}/{one.model} {f'for {one.open_for:.0f} s' if one.open_for else 'probing'}",
                "bad",
            )
            for one in view.breakers
        ]
        lines.append(_named("open", breakers))
    if view.limits:
        limits = [(_limit(one), "warn" if one.used >= _FULL else "") for one in view.limits]
        lines.append(_named("limits", limits))
    return lines


def _named(name: str, parts: Iterable[tuple[str, str]]) -> Text:
    line = _joined(parts)
    return Text.assemble((f"{name:<8}", "bold"), line, no_wrap=True, overflow="ellipsis")


def _limit(one: LimitNow) -> str:
    return f"{one.scope} {one.kind.replace('_per_', '/')} {max(0, one.used):.0%}"


def _share(calls: CallsNow) -> str:
    """How many failed.

    >>> _share(CallsNow("a", "b", 200, {"timeout": 3}, 0, None, None, None))
    '1.5%'
    """
    return f"{calls.failed / calls.calls:.1%}" if calls.failed else "0%"


def _dollars(cost: object, factor: float) -> str:
    """An amount an hour; two digits are enough for what changes every second."""
    return f"${float(str(cost)) * factor:,.2f}" if cost is not None else "$0"
