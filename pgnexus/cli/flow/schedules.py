"""`pgnexus flow schedule`: runs that start by the clock, put, looked at and taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from pgnexus.cli.flow.door import Door, opened
from pgnexus.cli.flow.input import UnknownSchedule, read_json
from pgnexus.cli.verb import Cli, verb
from pgnexus.errors import UnknownFlow
from pgnexus.flow.schedules.schedule import Schedule

_TIME = "%a %Y-%m-%d %H:%M %Z"

Name = Annotated[str, typer.Argument(help="The schedule's name.")]
CronLine = Annotated[
    str, typer.Argument(help="Minute, hour, day, month, weekday, as in '0 3 * * 1-5'.", metavar="CRON")
]
TimeZone = Annotated[str, typer.Option("--time-zone", "-z", help="The zone of its times, as Europe/Berlin.")]


@verb
async def list_schedules(cli: Cli) -> None:
    """List the schedules, and when they fire next."""
    async with opened(cli) as door:
        found = await door.executor.schedules.list()
    if cli.output.json:
        for one in found:
            cli.output.document(asdict(one))
    elif found:
        cli.output.show(_table(found))
    else:
        cli.output.say("no schedules there")


def _table(found: Sequence[Schedule]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name in ("schedule", "flow"):
        table.add_column(name, overflow="fold")
    table.add_column("cron", no_wrap=True)
    table.add_column("next")
    table.add_column("")
    for one in found:
        zone = ZoneInfo(one.time_zone)
        due = "[warn]paused[/]" if one.paused_at else one.next_fire_at.astimezone(zone).strftime(_TIME)
        said = [f"[bad]{escape(one.last_error)}[/]"] if one.last_error else []
        if one.last_fire_at:
            said.append(f"[quiet]last {one.last_fire_at.astimezone(zone).strftime('%Y-%m-%d %H:%M')}[/]")
        table.add_row(escape(one.name), escape(one.flow), escape(one.cron), due, ", ".join(said))
    return table


@verb
async def put(
    cli: Cli,
    name: Name,
    flow: Annotated[str, typer.Argument(help="The flow's name; each firing starts its newest version.")],
    cron: CronLine,
    time_zone: TimeZone = "UTC",
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            help='The runs\' input: JSON, @FILE, or - for stdin; "{scheduled_at}" becomes the time of the firing.',
        ),
    ] = None,
    catch_up: Annotated[
        str,
        typer.Option(help="What becomes of times at which no worker was there: skip, once (one run) or all."),
    ] = "once",
    paused: Annotated[
        bool | None,
        typer.Option("--paused/--running", help="Else as it is; a new one is running.", show_default=""),
    ] = None,
) -> None:
    """Store a schedule, or change the one of that name. It fires wherever a worker for flows is alive."""
    value = read_json("--input", input)
    given: Any = catch_up
    async with opened(cli) as door:
        await door.executor.schedules.put(
            name, flow, cron, time_zone=time_zone, input=value, catch_up=given, paused=paused
        )
        [stored] = [one for one in await door.executor.schedules.list() if one.name == name]
        missing = await _is_missing(door, flow)
    if cli.output.json:
        cli.output.document(asdict(stored))
        return
    due = stored.next_fire_at.astimezone(ZoneInfo(stored.time_zone)).strftime(_TIME)
    cli.output.text(f"{name}  {'paused' if stored.paused_at else f'fires next on {due}'}")
    if missing:
        cli.output.say(f"[warn]there is no flow {escape(flow)} yet;[/warn] until there is, it starts nothing")


async def _is_missing(door: Door, flow: str) -> bool:
    try:
        await door.graph(flow)
    except UnknownFlow:
        return True
    return False


@verb
async def remove(cli: Cli, name: Name) -> None:
    """Take a schedule away; runs that it started stay."""
    async with opened(cli) as door:
        await _tell(cli, door, name, "removed", known=await door.executor.schedules.remove(name))


@verb
async def pause(cli: Cli, name: Name) -> None:
    """Let a schedule fire no more until `flow schedule resume`."""
    async with opened(cli) as door:
        await _tell(cli, door, name, "paused", known=await door.executor.schedules.pause(name))


@verb
async def resume(cli: Cli, name: Name) -> None:
    """Let a schedule fire again, from now on."""
    async with opened(cli) as door:
        await _tell(cli, door, name, "resumed", known=await door.executor.schedules.resume(name))


async def _tell(cli: Cli, door: Door, name: str, outcome: str, *, known: bool) -> None:
    if not known:
        names = ", ".join(one.name for one in await door.executor.schedules.list()) or "none"
        raise UnknownSchedule(f"there is no schedule {name!r}; schedules: {names}")
    if cli.output.json:
        cli.output.document({"schedule": name, "outcome": outcome})
    else:
        cli.output.text(f"{name}  {outcome}")


@verb
async def preview(
    cli: Cli,
    cron: CronLine,
    time_zone: TimeZone = "UTC",
    count: Annotated[int, typer.Option("--count", "-n", help="How many times.")] = 5,
) -> None:
    """Print the next times at which such a schedule would fire; nothing is stored."""
    async with opened(cli) as door:
        times = await door.executor.schedules.preview(cron, time_zone, count)
    for moment in times:
        if cli.output.json:
            cli.output.document(moment)
        else:
            cli.output.text(moment.strftime(_TIME))
