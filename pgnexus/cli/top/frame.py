"""`pgnexus top`: one frame, as wide and high as there is room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgnexus.cli.output import duration, money
from pgnexus.cli.top.watcher import Seen
from pgnexus.watch.view import CallsNow, LimitNow, QueueNow, View

_WIDE = 120  # columns from which two tables stand side by side
_NUMBERS = 55  # columns that the numbers beside a model's name may take
_NEARLY_FULL = 0.8  # the share of a limit from which it is worth a colour

_Part = tuple[str, str]  # words and their style
_Row = TypeVar("_Row")


def frame(seen: Seen, width: int, height: int | None = None) -> RenderableType:
    """What was seen; without ``height`` all of it, else what matters most of it."""
    view, wide = seen.view, width >= _WIDE
    head: list[RenderableType] = []
    if seen.trouble is not None:
        head.append(_line([(f"the database does not answer; looking again: {seen.trouble}", "bad")]))
    if view is None:
        return Group(*head)
    head += [_state(view), *_rates(view, seen, wide)]
    foot = _foot(view, wraps=height is None)
    queues = _ours_and_busy(view.queues)
    models = sorted(view.calls, key=lambda one: (-one.in_flight, -one.calls))
    if wide:
        room = None if height is None else height - len(head) - len(foot) - 3
        tables = Table.grid(padding=(0, 4))
        tables.add_row(_queues(queues, room), _models(models, room))
        return Group(*head, "", tables, "", *foot)
    room = None if height is None else height - len(head) - len(foot) - 5
    first = None if room is None else max(2, min(len(queues), room // 2))
    second = None if room is None or first is None else room - first
    return Group(*head, "", _queues(queues, first), "", _models(models, second, width), "", *foot)


def _state(view: View) -> Text:
    parked = sum(one.requests for one in view.parked)
    return _line(
        [
            (f"pgnexus top {view.at:%H:%M:%S}", "bold"),
            (f"{view.instances} nexus", "good") if view.instances else ("no nexus alive", "bad"),
            (f"{view.in_flight:,} in flight", ""),
            (f"{parked:,} parked", "warn" if parked else ""),
            (f"{view.waiting_for_retry:,} to retry", "warn" if view.waiting_for_retry else ""),
        ]
    )


def _rates(view: View, seen: Seen, wide: bool) -> list[Text]:
    total = view.total
    rates: list[_Part] = [(f"{total.calls / view.window:,.1f} calls/s", "")]
    if total.calls:
        rates.append((f"{_share(total)} failed", "warn" if total.failed else ""))
        rates.append((f"p50 {duration(total.p50_ms)}, p95 {duration(total.p95_ms)}", ""))
    rates.append((f"{_short(total.tokens * 60 / view.window)} tokens/min", ""))
    spend: list[_Part] = [(f"${float(total.cost or 0) * 3600 / view.window:,.2f}/h", "key")]
    if seen.spent is not None:
        today, month = seen.spent
        spend += [(f"{_dollars(today.cost)} today", "key"), (f"{_dollars(month.cost)} this month", "key")]
        if month.unpriced:
            spend.append((f"{month.unpriced:,} calls of unknown price", "warn"))
    return [_line(rates + spend)] if wide else [_line(rates), _line(spend)]


def _ours_and_busy(queues: Sequence[QueueNow]) -> list[QueueNow]:
    """The lanes and the results, and of the other queues those with something in them, the fullest first."""
    ours = [one for one in queues if one.queue.startswith("ai_")]
    others = [one for one in queues if not one.queue.startswith("ai_") and one.depth]
    return ours + sorted(others, key=lambda one: -one.depth)


def _table(*names: str, most: int | None = None) -> Table:
    """``most`` is the width of the first column at most: numbers are not cut."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(names[0], no_wrap=True, overflow="ellipsis", min_width=12, max_width=most)
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _queues(queues: Sequence[QueueNow], room: int | None) -> Table:
    table = _table("queue", "depth", "ready", "oldest")
    for one in _fitting(queues, room):
        oldest = "" if one.oldest_seconds is None else duration(max(0, one.oldest_seconds) * 1000)
        table.add_row(one.queue, f"{one.depth:,}", f"{one.ready:,}", oldest)
    _say_rest(table, queues, room)
    return table


def _models(models: Sequence[CallsNow], room: int | None, width: int | None = None) -> Table:
    most = None if width is None else max(12, width - _NUMBERS)
    table = _table("model", "now", "calls", "failed", "p50", "p95", "tokens", "cost", most=most)
    for one in _fitting(models, room):
        table.add_row(
            f"{one.provider}/{one.model}",
            f"{one.in_flight:,}",
            f"{one.calls:,}",
            Text(_share(one), "warn" if one.failed else ""),
            duration(one.p50_ms),
            duration(one.p95_ms),
            _short(one.tokens),
            "" if one.cost is None else _dollars(one.cost),
        )
    _say_rest(table, models, room)
    return table


def _fitting(rows: Sequence[_Row], room: int | None) -> Sequence[_Row]:
    return rows if room is None or len(rows) <= room else rows[: max(1, room - 1)]


def _say_rest(table: Table, rows: Sequence[object], room: int | None) -> None:
    if hidden := len(rows) - len(_fitting(rows, room)):
        table.add_row(Text(f"… {hidden} more", "dim"))


def _foot(view: View, *, wraps: bool) -> list[Text]:
    """A line each for what is not always there."""
    failures: Counter[str] = Counter()
    for one in view.calls:
        for outcome, calls in one.failures.items():
            failures[f"{one.provider} {outcome}"] += calls
    parked = sorted(view.parked, key=lambda one: -one.requests)
    named: dict[str, list[_Part]] = {
        "parked": [(f"{one.scope} {one.requests:,}", "") for one in parked],
        "failed": [(f"{name} {calls:,}", "warn") for name, calls in failures.most_common()],
        "open": [
            (
                f"{one.provider}/{one.model} "
                + (f"for {duration(one.open_for * 1000)}" if one.open_for else "to be probed"),
                "bad",
            )
            for one in view.breakers
        ],
        "limits": [(_limit(one), "warn" if one.used >= _NEARLY_FULL else "") for one in view.limits],
    }
    return [_line(parts, name=f"{name:<8}", wraps=wraps) for name, parts in named.items() if parts]


def _line(parts: Iterable[_Part], *, name: str = "", wraps: bool = False) -> Text:
    line = Text(name, "bold", no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for n, (words, style) in enumerate(parts):
        line.append(" · " if n else "", "not bold dim")
        line.append(words, f"not bold {style}" if name else style)
    return line


def _limit(one: LimitNow) -> str:
    """A limit and its use.

    >>> _limit(LimitNow("openai", "usd_per_day", Decimal(10), 0.925))
    'openai usd/day 92%'
    """
    return f"{one.scope} {one.kind.replace('_per_', '/').replace('_', ' ')} {max(0, one.used):.0%}"


def _share(calls: CallsNow) -> str:
    """How many failed.

    >>> _share(CallsNow("a", "b", 200, {"timeout": 3}, 0, None, None, None))
    '1.5%'
    """
    return f"{calls.failed / calls.calls:.1%}" if calls.failed else "0%"


def _short(number: float) -> str:
    """A number that people can read at a glance.

    >>> _short(999), _short(12_345), _short(5_789_092)
    ('999', '12.3k', '5.8M')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _dollars(cost: Decimal) -> str:
    """An amount in cents; less than one to its first digits.

    >>> _dollars(Decimal("1234.5")), _dollars(Decimal("0.0042")), _dollars(Decimal(0))
    ('$1,234.50', '$0.0042', '$0')
    """
    return f"${cost:,.2f}" if cost >= Decimal("0.01") else money(round(cost, 4))
