"""`pgnexus costs`: what the calls to providers took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from pgnexus.app import App
from pgnexus.caller.costs import COSTS_BY, CostRow, total
from pgnexus.caller.costs import costs as read_costs
from pgnexus.cli.output import money
from pgnexus.cli.requests import moment
from pgnexus.cli.verb import Cli, verb

_ROOMY = 120  # columns from which more is shown


@verb
async def costs(
    cli: Cli,
    by: Annotated[str, typer.Option(help=f"Add up by some of: {', '.join(COSTS_BY)}.")] = "model",
    since: Annotated[
        str, typer.Option(help="Calls since: 90s, 30m, 2h, 7d, or a date and time; all: since ever.")
    ] = "30d",
    until: Annotated[str | None, typer.Option(help="Calls before, in the same words.")] = None,
    agent_id: Annotated[str | None, typer.Option("--agent", help="Only calls for this agent.")] = None,
) -> None:
    """Add up calls, tokens and cost of the calls to providers, retried and abandoned ones included.

    Days and hours are UTC's. A cost that is not known is never counted as 0: it is told beside the sum.
    """
    names = [name.strip() for name in by.split(",") if name.strip()]
    begin, end = None if since == "all" else moment(since), moment(until, "--until")
    app = App(cli.settings(), caller=False, nexus=False)
    await app.start()
    try:
        rows = await read_costs(app.db, names, since=begin, until=end, agent_id=agent_id)
    finally:
        await app.stop()
    if cli.output.json:
        document = {
            "since": begin,
            "until": end,
            "by": names,
            "rows": [_document(row, names) for row in rows],
        }
        cli.output.document(document | {"total": _document(total(rows), [])})
    elif rows:
        cli.output.show(_table(rows, names, roomy=cli.output.out.width >= _ROOMY))
        for line in _notes(total(rows), begin, end):
            cli.output.say(line)
    else:
        cli.output.say("no calls there")


def _document(row: CostRow, names: Sequence[str]) -> dict[str, Any]:
    told = {name: value for name, value in asdict(row).items() if name not in COSTS_BY or name in names}
    for name in ("cost", "estimated_cost"):
        told[name] = None if told[name] is None else format(told[name], "f")
    return told


def _table(rows: Sequence[CostRow], names: Sequence[str], *, roomy: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_footer=len(rows) > 1)
    sums, footed = total(rows), "total"
    for name in names:
        table.add_column(name, footed, footer_style="bold", overflow="ellipsis", no_wrap=True)
        footed = ""
    for head, foot in zip(_heads(roomy=roomy), _amounts(sums, roomy=roomy), strict=True):
        table.add_column(head, foot, footer_style="bold", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_key(row, name) for name in names), *_amounts(row, roomy=roomy))
    return table


def _heads(*, roomy: bool) -> list[str]:
    if roomy:
        return ["calls", "prompt", "of it cached", "answer", "of it reasoning", "cost", "of it estimated"]
    return ["calls", "prompt", "answer", "cost"]


def _amounts(row: CostRow, *, roomy: bool) -> list[str]:
    shown = [f"{row.calls:,}", _tokens(row.prompt_tokens), _tokens(row.completion_tokens), _cost(row)]
    if not roomy:
        return shown
    estimated = "" if row.estimated_cost is None else money(row.estimated_cost)
    calls, prompt, answer, cost = shown
    return [calls, prompt, _tokens(row.cached_tokens), answer, _tokens(row.reasoning_tokens), cost, estimated]


def _key(row: CostRow, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return "[quiet]none[/]"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:00}"
    return escape(str(value))


def _tokens(count: int) -> str:
    return f"{count:,}" if count else ""


def _cost(row: CostRow) -> str:
    """The sum of what is known, and of how many calls it is not; nothing where nothing was used."""
    lacking = f"[warn]{row.calls_of_unknown_cost:,} unknown[/]" if row.calls_of_unknown_cost else ""
    known = "" if row.cost is None else money(row.cost)
    return f"{known} + {lacking}" if known and lacking else known or lacking


def _notes(sums: CostRow, since: datetime | None, until: datetime | None) -> list[str]:
    times = [f"{word} {at:%Y-%m-%d %H:%M %Z}" for word, at in (("since", since), ("until", until)) if at]
    lines = [f"[quiet]calls {' '.join(times) or 'since ever'}[/]"]
    if sums.calls_of_unknown_cost:
        lines.append(
            f"[warn]{sums.calls_of_unknown_cost:,} calls are of models without a known price and are in no sum; "
            'set one with models."PROVIDER/MODEL".input_price and output_price[/]'
        )
    if sums.estimated_calls:
        lines.append(
            f"[quiet]{sums.estimated_calls:,} calls are estimated: they were left, or their worker was lost, before "
            "the vendor told what they took[/]"
        )
    return lines
