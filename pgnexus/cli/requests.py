"""`pgnexus result`, `requests`, `cancel`, `retry`: what was asked before, looked at and changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, get_args

import typer
from rich import box
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pgnexus.app import App
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.progress import RequestProgress
from pgnexus.caller.results import JobResult, JobStatus
from pgnexus.cli import exits
from pgnexus.cli.ask import print_result, wait_and_print
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output, age, duration, job_document, money
from pgnexus.cli.verb import Cli, verb
from pgnexus.errors import InvalidRequest, RequestError, UnknownRequest, error_for

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_ROOMY = 120  # columns from which more is shown
_WIDEST = 36  # of a column but the model's; a request_id has just that


@verb
async def result(
    cli: Cli,
    request_id: Annotated[str, typer.Argument(help="The request.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until there is a result.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most, with --wait.")] = None,
) -> int | None:
    """Print the result of a request, or where it is now (exit code 4)."""
    if timeout is not None and not wait:
        raise InvalidRequest("--timeout goes with --wait")
    with Interrupt.handled() as interrupt, cli.output.working("starting") as working:
        app = App(cli.settings(), nexus=None if wait else False, report=working)
        interrupt.on_second(app.hurry)
        await app.start()
        try:
            handle = app.service.handle(request_id)
            if wait:
                working("waiting for the result")
                return await wait_and_print(cli.output, handle, interrupt, working, timeout)
            job = await app.service.job_result(handle.request_id)
            progress = await handle.progress()
        finally:
            await app.stop()
    return _print_job(cli.output, job, progress)


def _print_job(output: Output, job: JobResult, progress: RequestProgress | None) -> int:
    if not job.ended:
        if output.json:
            where = asdict(progress) if progress else None
            output.document({"request_id": str(job.request_id), "status": job.status, "progress": where})
        how = f", {escape(str(progress))}" if progress else ""
        output.say(
            f"request {job.request_id} is [status.{job.status}]{job.status}[/]{how}; --wait waits for its result"
        )
        return exits.TIMEOUT
    found = job.to_result()
    if found.ok or output.json:
        print_result(output, found)
    if found.ok:
        return exits.OK
    error = found.error
    kind: type[RequestError] = error_for(error.type if found.status == "failed" and error else found.status)
    output.error(kind(error.message if error else found.status, request_id=job.request_id, result=found))
    return exits.code_for_status(found.status)


@verb
async def requests(
    cli: Cli,
    agent_id: Annotated[str | None, typer.Option(help="Only those of this agent.")] = None,
    task_type: Annotated[str | None, typer.Option(help="Only those of this task type.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only those in this state: " + ", ".join(get_args(JobStatus)) + ".")
    ] = None,
    workflow: Annotated[str | None, typer.Option(help="Only those of this workflow.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Accepted since: 90s, 30m, 2h, 7d, or a date and time.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 20,
) -> None:
    """List requests, the newest first. With --json one line each, input and output included."""
    if status is not None and status not in get_args(JobStatus):
        raise InvalidRequest(f"--status: {status!r} is none of {', '.join(get_args(JobStatus))}")
    app = App(cli.settings(), nexus=False)
    await app.start()
    try:
        found = await app.service.search(
            agent_id=agent_id, task_type=task_type, status=status, workflow=workflow, since=moment(since), limit=limit
        )  # fmt: skip
    finally:
        await app.stop()
    if cli.output.json:
        for job in found:
            cli.output.document(job_document(job))
    elif found:
        cli.output.show(_table(found, cli.output.out.width))
    else:
        cli.output.say("no requests there")


def _table(jobs: Sequence[JobResult], width: int) -> Table:
    roomy, now = width >= _ROOMY, datetime.now(UTC)
    rows = [_row(job, now, roomy=roomy) for job in jobs]
    names = [
        "request_id",
        "status",
        "age",
        *(["task", "agent", "tokens", "took"] if roomy else []),
        "cost",
        "model",
    ]
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    left = width
    for place, name in enumerate(names[:-1]):
        taken = min(_WIDEST, max(len(name), *(Text.from_markup(row[place]).cell_len for row in rows)))
        left -= taken + 2
        justify: JustifyMethod = "right" if name in ("age", "tokens", "took", "cost") else "left"
        table.add_column(name, no_wrap=True, width=taken, justify=justify)
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=max(left, len("model")))
    for row in rows:
        table.add_row(*row)
    return table


def _row(job: JobResult, now: datetime, *, roomy: bool) -> list[str]:
    row = [str(job.request_id), f"[status.{job.status}]{job.status}[/]", age(job.enqueued_at, now)]
    if roomy:
        tokens = "" if job.total_tokens is None else f"{job.total_tokens:,}"
        row += [escape(job.task_type or job.complexity or ""), escape(job.agent_id or ""), tokens]
        row.append(duration(job.duration_ms))
    return [*row, "" if job.cost is None else money(job.cost), escape(job.model or "")]


Outcome = Literal["cancelled", "ended before", "unknown"]


@verb
async def cancel(
    cli: Cli, request_ids: Annotated[list[str], typer.Argument(metavar="REQUEST_ID...", help="The requests.")]
) -> int:
    """Cancel requests; a call under way is given up.

    Exit code 0: all were cancelled by this; 1: some had ended before; 6: some are unknown.
    """
    app = App(cli.settings(), nexus=False)
    await app.start()
    outcomes: list[Outcome] = []
    try:
        handles = [app.service.handle(request_id) for request_id in request_ids]
        for handle in handles:
            outcome = await _cancelled(handle)
            outcomes.append(outcome)
            if cli.output.json:
                cli.output.document({"request_id": str(handle.request_id), "outcome": outcome})
            else:
                cli.output.text(f"{handle.request_id}  {outcome}")
    finally:
        await app.stop()
    if "unknown" in outcomes:
        return exits.UNKNOWN
    return exits.FAILED if "ended before" in outcomes else exits.OK


async def _cancelled(handle: RequestHandle) -> Outcome:
    try:
        return "cancelled" if await handle.cancel() else "ended before"
    except UnknownRequest:
        return "unknown"


@verb
async def retry(
    cli: Cli,
    request_id: Annotated[str, typer.Argument(help="A request that has ended.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer, too.")] = False,
) -> int | None:
    """Ask again what a request that has ended asked: a new request."""
    with Interrupt.handled() as interrupt, cli.output.working("starting") as working:
        app = App(cli.settings(), nexus=None if wait else False, report=working)
        interrupt.on_second(app.hurry)
        await app.start()
        try:
            handle = await app.service.retry(request_id)
            if wait:
                working("waiting for the answer")
                return await wait_and_print(cli.output, handle, interrupt, working)
        finally:
            await app.stop()
    if cli.output.json:
        cli.output.document({"request_id": str(handle.request_id), "retry_of": request_id})
    else:
        cli.output.text(str(handle.request_id))
    return exits.OK


def moment(text: str | None, option: str = "--since") -> datetime | None:
    """The time that an option names; raises `InvalidRequest`."""
    if text is None:
        return None
    if matched := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip()):
        try:
            return datetime.now(UTC) - timedelta(seconds=float(matched[1]) * _UNITS[matched[2]])
        except OverflowError:
            raise InvalidRequest(f"{option}: {text!r} is before all dates") from None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise InvalidRequest(
            f"{option}: {text!r} is neither like 90s, 30m, 2h, 7d nor a date and time"
        ) from None
