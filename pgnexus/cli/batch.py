"""`pgnexus batch`: a file of requests into a file of answers, resumable, with nothing asked twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pgnexus.app import App
from pgnexus.cli import exits
from pgnexus.cli.batch_files import InputFile, OutputFile
from pgnexus.cli.batch_run import BatchRun, Tally
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output, duration, money
from pgnexus.cli.verb import Cli, verb


@verb
async def batch(
    cli: Cli,
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="One request a line.")],
    target: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Where the answers go.")
    ],
    complexity: Annotated[
        str | None, typer.Option("--complexity", "-c", help="Of lines that name none.")
    ] = None,
    task_type: Annotated[str | None, typer.Option(help="Of lines that name none.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of lines that name none.")] = None,
    provider: Annotated[str | None, typer.Option("--provider", "-p", help="Of lines that name none.")] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="System message before each line's.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of lines that name none.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of lines that name none.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until a request's deadline.")] = 86400.0,
    priority: Annotated[str, typer.Option(help="interactive, standard or batch.")] = "batch",
    agent_id: Annotated[str | None, typer.Option(help="Who asks, to find the requests again by.")] = None,
    window: Annotated[int, typer.Option(min=1, max=100_000, help="Requests under way at once.")] = 1000,
    name: Annotated[
        str | None,
        typer.Option(help="The batch's name; another one asks everything anew.", show_default="path of IN"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what OUT has as failed.")
    ] = False,
) -> int:
    """Answer every line of IN.jsonl into OUT.jsonl.

    A line of IN is an object: "prompt" (a text) or "messages", and options of a request (model, complexity,
    max_tokens, …), which go before those of the command line; "id" is copied to OUT. A line that cannot be
    asked becomes a failed line of OUT. After Ctrl-C or a crash, run the same command again: what OUT has is
    skipped, what was under way is found again, nothing is asked twice.
    """
    defaults: dict[str, Any] = {
        "complexity": complexity, "task_type": task_type, "model": model, "provider": provider,
        "system": system, "max_tokens": max_tokens, "temperature": temperature, "timeout": timeout,
        "priority": priority, "agent_id": agent_id,
    }  # fmt: skip
    given = {key: value for key, value in defaults.items() if value is not None}
    start, output, lines = time.monotonic(), cli.output, InputFile(source)
    async with AsyncExitStack() as stack:
        interrupt = stack.enter_context(Interrupt.handled())
        total = lines.count()
        answers = OutputFile(target)
        stack.callback(answers.close)
        answers.open()
        with output.working("starting") as working:
            app = App(cli.settings(), nexus=None, report=working)
            await app.start()
        stack.push_async_callback(app.stop)
        interrupt.on_second(app.hurry)
        with _progress(output, total) as shown:
            run = BatchRun(
                app.service, lines, answers, name=name, defaults=given,
                window=window, retry_failed=retry_failed, on_progress=shown,
            )  # fmt: skip
            run.tally.lines = total
            await interrupt.unless(run.run())
            shown(run.tally)
        if interrupt.came:
            output.say(_stopping(app))
    _tell(output, run.tally, interrupted=interrupt.came, seconds=time.monotonic() - start)
    if interrupt.came:
        return exits.INTERRUPTED
    return exits.FAILED if run.tally.failed or run.tally.failed_before else exits.OK


@contextmanager
def _progress(output: Output, total: int) -> Iterator[Any]:
    """A bar on stderr where there is a terminal; yields what is to be called as things go on."""
    if output.json or not output.err.is_terminal:
        yield lambda _: None
        return
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=output.err, expand=True) as progress:
        task = progress.add_task("", total=total, rest="")

        def show(tally: Tally) -> None:
            failed = f"[bad]{tally.failed:,} failed[/]  " if tally.failed else ""
            rest = f"{failed}{tally.tokens:,} tok  {_cost(tally)}"
            progress.update(task, completed=tally.done + tally.skipped, rest=rest)

        yield show


def _stopping(app: App) -> str:
    """What becomes of the calls under way, which are ours only with a nexus in this process."""
    if app.nexus is None:
        return "[warn]stopping[/warn]: what was asked goes on in the nexus that is alive"
    if not app.nexus.consumer.in_flight:
        return "[warn]stopping[/warn]"
    return "[warn]stopping[/warn]: calls under way may finish (Ctrl-C again gives them back)"


def _cost(tally: Tally) -> str:
    """What was spent; what is not known is never shown as nothing.

    >>> _cost(Tally(unknown_costs=2)), _cost(Tally(unknown_costs=2, known_costs=1)), _cost(Tally())
    ('cost unknown', '≥ $0', '$0')
    """
    if tally.unknown_costs and tally.known_costs:
        return f"≥ {money(tally.known_cost)}"
    return money(tally.cost)


def _tell(output: Output, tally: Tally, *, interrupted: bool, seconds: float) -> None:
    if output.json:
        cost = None if tally.cost is None else format(tally.cost, "f")
        document = asdict(tally) | {"cost": cost, "known_cost": format(tally.known_cost, "f")}
        output.document(document | {"interrupted": interrupted, "seconds": round(seconds, 3)})
        return
    parts = [f"{tally.done - tally.failed:,} answered"]
    if tally.failed:
        parts.append(f"[bad]{tally.failed:,} failed[/bad]")
    if tally.skipped:
        parts.append(f"{tally.skipped:,} there before")
    if tally.failed_before:
        parts[-1] += f", {tally.failed_before:,} of them failed (--retry-failed asks them again)"
    parts += [f"{tally.tokens:,} tokens", _cost(tally), duration(seconds * 1000)]
    output.say(" · ".join(parts))
    if tally.unknown_costs:
        output.say(f"[quiet]of {tally.unknown_costs:,} the cost is not known[/quiet]")
    if interrupted:
        left = tally.lines - tally.done - tally.skipped
        output.say(f"[warn]{left:,} left[/warn]: run the same command again to go on")
