"""`pgnexus flow list`, `show`, `runs`: which flows and runs there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final, get_args

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pgnexus.cli.flow.door import opened
from pgnexus.cli.flow.drawing import draw
from pgnexus.cli.flow.graph import Graph, Node, graph_of_code, mermaid
from pgnexus.cli.flow.input import flow_of, is_path
from pgnexus.cli.flow.tree import Hung, tree
from pgnexus.cli.output import Output, age, duration
from pgnexus.cli.requests import moment
from pgnexus.cli.verb import Cli, verb
from pgnexus.errors import InvalidRequest
from pgnexus.flow.runs.status import RunState, RunSummary

_ROOMY: Final = 110  # columns from which more is shown
_STATES: Final = ("started", "completed", "failed", "cancelled")
_TASKS: Final = ("queued", "running", "waiting")
_KINDS: Final = {"llm": "magenta", "wait": "yellow", "map": "cyan"}


@verb
async def list_flows(cli: Cli) -> None:
    """List the flows of the database: versions, steps, runs and tasks by state.

    Runs are counted as long as they are stored, tasks of runs under way: queued, running at a worker, and
    waiting for a signal or a model, which holds no worker. Flows built at run time are counted by the
    name that their description gives them.
    """
    async with opened(cli) as door:
        flows, workers = await door.flows(), await door.workers()
    if cli.output.json:
        for row in flows:
            cli.output.document(_flow_document(row))
    elif flows:
        cli.output.show(_flows(flows, cli.output.out.width))
        cli.output.show(
            f"{workers:,} worker{'s' if workers > 1 else ''} alive"
            if workers
            else "[warn]no worker for flows is alive[/]"
        )
    else:
        cli.output.say("no flows there yet; pgnexus up --flow MODULE:NAME runs one")


def _flow_document(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "newest": row.newest,
        "versions": row.versions,
        "steps": row.steps,
        "built": row.built,
        "paused": row.paused,
        "runs": {state: getattr(row, state) for state in _STATES},
        "tasks": {state: getattr(row, state) for state in _TASKS},
        "last_run": row.last_run,
    }


def _flows(flows: Sequence[Any], width: int) -> Table:
    roomy, now = width >= _ROOMY, datetime.now(UTC)
    table = _table()
    table.add_column("flow", no_wrap=True, overflow="ellipsis")
    counted = [*(("versions", "steps") if roomy else ()), "under way", "completed", "failed", "cancelled"]
    counted += ["queued", "running", "waiting"] if roomy else ["queued"]
    for name in (*counted, "last run"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in flows:
        name = escape(row.name) + (" [quiet](built)[/]" if row.built else "")
        cells = [name + (" [warn]paused[/]" if row.paused else "")]
        cells += [f"{row.versions:,}", f"{row.steps:,}"] if roomy else []
        cells += [_count(row.started, "key"), _count(row.completed, "good")]
        cells += [_count(row.failed, "bad"), _count(row.cancelled, "status.cancelled"), _count(row.queued)]
        cells += [_count(row.running), _count(row.waiting, "warn")] if roomy else []
        table.add_row(*cells, f"{age(row.last_run, now)} ago" if row.last_run else "")
    return table


def _count(number: int, style: str = "") -> str:
    if not number:
        return "[quiet]·[/]"
    return f"[{style}]{number:,}[/]" if style else f"{number:,}"


@verb
async def show(
    cli: Cli,
    name: Annotated[
        str, typer.Argument(metavar="FLOW", help="Its name in the database, or package.module:name.")
    ],
    as_mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print the graph as Mermaid text, for documents.")
    ] = False,
) -> None:
    """Draw a flow's graph, and say what each step is: single, map, llm or wait, its conditions and options.

    A name is the newest version's. package.module:name needs no database.
    """
    if is_path(name):
        graph = graph_of_code(flow_of(name))
    else:
        async with opened(cli) as door:
            graph = await door.graph(name)
    if cli.output.json:
        cli.output.document(graph.document())
    elif as_mermaid:
        cli.output.text(mermaid(graph))
    else:
        _show(cli.output, graph)


def _show(output: Output, graph: Graph) -> None:
    title = Text.assemble((graph.name, "bold"))
    if graph.flow_slug not in (None, graph.name):
        title.append(f"  {graph.flow_slug}", "quiet")
    if graph.versions > 1:
        title.append(f"  version {graph.version} of {graph.versions}", "quiet")
    if graph.paused_at is not None:
        title.append("  paused", "warn")
    output.show(title)
    output.show(Text(graph.options(), style="quiet"))
    output.show()
    if (lines := draw(graph.nodes, output.out.width)) is not None:
        output.show(Group(*lines))
    else:
        output.show(Group(*(line for place in tree(graph.nodes) for line in _branch(*place))))
    output.show()
    output.show(_steps(graph.nodes))


def _branch(guide: str, below: str, node: Node) -> list[RenderableType]:
    """A step's lines where the boxes would be wider than the terminal."""
    line = Text.assemble((guide, "quiet"), (node.slug, "bold"), overflow="ellipsis", no_wrap=True)
    line.append(f"  {node.sort}", _KINDS.get(node.kind, "quiet"))
    if len(node.depends_on) < 2:
        return [line]
    return [line, Hung(Text(f"after {', '.join(node.depends_on)}", style="quiet"), below)]


def _steps(nodes: Sequence[Node]) -> Table:
    table = _table()
    table.add_column("step", no_wrap=True, overflow="ellipsis", max_width=32)
    table.add_column("kind", no_wrap=True)
    table.add_column("")
    for node in nodes:
        said = Text(" · ".join(node.remarks()))
        if node.doc:
            said.append(f"{' · ' if said else ''}{node.doc}", "quiet")
        table.add_row(escape(node.slug), Text(node.sort, style=_KINDS.get(node.kind, "")), said)
    return table


@verb
async def runs(
    cli: Cli,
    flow: Annotated[str | None, typer.Option("--flow", "-f", help="Only those of this flow.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only those in this state: " + ", ".join(get_args(RunState)) + ".")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Started since: 90s, 30m, 2h, 7d, or a date and time.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 20,
) -> None:
    """List runs, the newest first. With --json one line each."""
    if status is not None and status not in get_args(RunState):
        raise InvalidRequest(f"--status: {status!r} is none of {', '.join(get_args(RunState))}")
    state: Any = status
    async with opened(cli) as door:
        slug = await door.slug(flow) if flow is not None else None
        found = await door.executor.runs(slug, state, since=moment(since), limit=limit)
    if cli.output.json:
        for one in found:
            cli.output.document(asdict(one))
    elif found:
        cli.output.show(_runs(found, cli.output.out.width))
    else:
        cli.output.say("no runs there")


def _runs(found: Sequence[RunSummary], width: int) -> Table:
    now = datetime.now(UTC)
    table = _table()
    table.add_column("run_id", no_wrap=True, min_width=36)
    table.add_column("status", no_wrap=True, min_width=9)
    for name in ("age", "took"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("flow", no_wrap=True, overflow="ellipsis")
    if roomy := width >= _ROOMY:
        table.add_column("", no_wrap=True, overflow="ellipsis")
    for one in found:
        style = {"started": "key", "completed": "good"}.get(one.status, f"status.{one.status}")
        took = duration((one.ended_at - one.started_at).total_seconds() * 1000) if one.ended_at else ""
        row = [str(one.run_id), f"[{style}]{one.status}[/]", age(one.started_at, now), took, escape(one.flow)]
        left = (
            f"{one.steps_left:,} step{'s' * (one.steps_left != 1)} left"
            if not one.ended_at
            else escape(" ".join((one.error or "").split()))
        )
        table.add_row(*row, *([f"[quiet]{left}[/]"] if roomy else []))
    return table


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
