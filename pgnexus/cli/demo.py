"""`pgnexus demo`: one question the whole way, shown step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from psycopg.errors import InsufficientPrivilege
from rich import box
from rich.table import Table
from rich.text import Text

from pgnexus.app import App, database_url
from pgnexus.cli import exits
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output, duration, money
from pgnexus.cli.verb import Cli, verb
from pgnexus.db.connection import display
from pgnexus.db.database import Database
from pgnexus.messages import REQUEST_QUEUES, LLMResult

QUESTION = "What is the capital of France?"


@verb
async def demo(
    cli: Cli, question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)] = QUESTION
) -> int:
    """Start what is needed, ask one question the whole way, show the answer and the steps it took.

    Without a provider's key it is the local model that answers; without a database the embedded one is used.
    """
    output, settings = cli.output, cli.settings()
    async with AsyncExitStack() as stack:
        interrupt = stack.enter_context(Interrupt.handled())
        with _step(output, "database") as done:
            url = await stack.enter_async_context(database_url(settings))
            done("embedded PostgreSQL" if settings.database_url is None else display(url))
        with _step(output, "nexus and poller") as done:
            app = App(settings.model_copy(update={"database_url": url}), nexus=None)
            await app.start()
            stack.push_async_callback(app.stop)
            interrupt.on_second(app.hurry)
            done("in this process" if app.nexus else "the nexus that is alive already")
        with _step(output, "asking") as done:
            asked = app.service.call("simple", question, priority="interactive", max_tokens=200, timeout=300)
            result = await interrupt.unless(asked)
            if result is None:
                return exits.INTERRUPTED
            done(f"{result.provider}/{result.model}")
        times = await _timeline(url, result.request_id)
    if output.json:
        output.document({"result": result.model_dump(mode="json"), "timeline": times})
    else:
        _show(output, question, result, times)
    return exits.OK


@contextmanager
def _step(output: Output, name: str) -> Iterator[Callable[[str], None]]:
    """One line: a spinner while the block runs, then what came of it and how long it took."""
    start, said = time.perf_counter(), [""]
    with output.working(f"{name} …"):
        yield said.append
    took = duration((time.perf_counter() - start) * 1000)
    output.say(f"[good]✓[/good] {name:<17} {said[-1]:<40} [quiet]{took:>8}[/quiet]")


async def _timeline(url: str, request_id: UUID) -> dict[str, Any] | None:
    """What the tables say about the way of a request; None for a role that may not look at both sides."""
    db = await Database.open(url, pool_size=1)
    try:
        [row] = await db.query("request_timeline", {"request_id": request_id})
    except InsufficientPrivilege:
        return None
    finally:
        await db.close()
    return dict(row._asdict())


def _show(output: Output, question: str, result: LLMResult, times: dict[str, Any] | None) -> None:
    output.show()
    output.show(Text.assemble((" you    ", "bold cyan"), question))
    output.show(Text.assemble((" answer ", "bold green"), result.text))
    output.show()
    if times is not None:
        output.show(_way(times))
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    facts.add_column(style="key")
    facts.add_column()
    usage = result.usage
    facts.add_row("model", f"{result.model} ({result.provider})")
    facts.add_row("tokens", f"{usage.prompt_tokens:,} in, {usage.completion_tokens:,} out")
    facts.add_row("cost", money(result.cost))
    facts.add_row("latency", duration(result.latency_ms))
    facts.add_row("request_id", str(result.request_id))
    output.show(facts)
    output.show()
    output.show(Text(f" It is stored: pgnexus result {result.request_id}", style="quiet"))


def _way(times: Mapping[str, Any]) -> Table:
    """The steps with the milliseconds since the request was accepted, and which transaction did them."""
    lane = REQUEST_QUEUES[times["priority"]]
    steps = (
        ("T1", "stored", "job_results", times["enqueued_at"]),
        ("", "queued", lane, times["enqueued_at"]),
        ("T2", "consumed", "LLMRequestWorkflow started", times["consumed_at"]),
        ("", "routed", f"{times['provider']}/{times['model']}", times["asked_at"]),
        ("", "answered", "by the model", times["answered_at"]),
        ("T3", "published", "ai_results, and into the books", times["published_at"]),
        ("T4", "polled", "off ai_results", times["finished_at"]),
        ("", "stored", "job_results, and the caller woken", times["finished_at"]),
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, header_style="quiet")
    table.add_column("")
    table.add_column("step")
    table.add_column("where")
    table.add_column("ms", justify="right")
    for transaction, name, where, moment in steps:
        table.add_row(
            f"[quiet]{transaction}[/]", f"[good]{name}[/]", where, _since(times["enqueued_at"], moment)
        )
    return table


def _since(start: datetime, moment: datetime | None) -> str:
    return "" if moment is None else f"{(moment - start).total_seconds() * 1000:.1f}"
