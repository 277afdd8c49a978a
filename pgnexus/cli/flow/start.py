"""`pgnexus flow start`: a run from the terminal, and if wanted its end."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from pgnexus.cli import exits
from pgnexus.cli.flow.door import Door, opened
from pgnexus.cli.flow.input import flow_of, is_path, read_json
from pgnexus.cli.flow.run import Watched, code_of, print_output
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output, duration
from pgnexus.cli.verb import Cli, verb
from pgnexus.errors import InvalidRequest, RunCancelled, RunFailed, RunPending
from pgnexus.flow.runs.executor import FlowRef
from pgnexus.flow.runs.handle import RunHandle


@verb
async def start(
    cli: Cli,
    name: Annotated[
        str, typer.Argument(metavar="FLOW", help="Its name in the database, or package.module:name.")
    ],
    input: Annotated[
        str | None,
        typer.Option("--input", "-i", help="The run's input: JSON, @FILE, or - for stdin; else null."),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", "-k", help="The same key starts the same run.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, print the output.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most, with --wait.")] = None,
    work: Annotated[
        bool, typer.Option("--work", help="Run it in this process, too, with --wait and package.module:name.")
    ] = False,
) -> int:
    """Start a run of a flow and print its run_id; with --wait its output instead.

    The run is stored before its id is printed. Workers run it: `pgnexus up --flow`, programs with an
    executor, or this process with --work. Ctrl-C ends only the wait. A flow given as package.module:name is
    looked for from the current directory on, and made known to the database; only of such a one it is checked
    whether the input fits.
    """
    _check(name, wait=wait, timeout=timeout, work=work)
    value = read_json("--input", input)
    flow: FlowRef = flow_of(name) if is_path(name) else name
    works: dict[str, Any] = {"caller": True, "nexus": None, "flows": [flow]} if work else {}
    with Interrupt.handled() as interrupt, cli.output.working("starting") as working:
        async with opened(cli, **works, report=working) as door:
            interrupt.on_second(door.hurry)
            ref = await door.slug(flow) if isinstance(flow, str) else flow
            handle = await door.executor.start(ref, value, key=key)
            if not wait:
                working("")
                return _told(cli.output, handle)
            if not cli.output.err.is_terminal or cli.output.json:
                ended = await interrupt.unless(_until_end(door, handle, timeout))
            else:
                working("")
                ended = await interrupt.unless(_live(door, handle, timeout, cli.output))
            if ended is None:
                _left(cli.output, handle, works=work)
                return exits.INTERRUPTED
            return await _print(cli.output, door, handle)


def _check(name: str, *, wait: bool, timeout: float | None, work: bool) -> None:
    if timeout is not None and not wait:
        raise InvalidRequest("--timeout goes with --wait")
    if work and not wait:
        raise InvalidRequest("--work goes with --wait: this process works until the run has ended")
    if work and not is_path(name):
        raise InvalidRequest(
            f"--work: {name!r} is a name in the database; to run it here, say where its code is, "
            "as package.module:name"
        )


async def _until_end(door: Door, handle: RunHandle, timeout: float | None) -> bool:
    try:
        async with asyncio.timeout(timeout):
            await Watched(door, handle.run_id).until_end()
    except TimeoutError:
        raise RunPending(handle.run_id, timeout or 0.0) from None
    return True


async def _live(door: Door, handle: RunHandle, timeout: float | None, output: Output) -> bool:
    try:
        async with asyncio.timeout(timeout):
            await Watched(door, handle.run_id).live(output.err)
    except TimeoutError:
        raise RunPending(handle.run_id, timeout or 0.0) from None
    return True


async def _print(output: Output, door: Door, handle: RunHandle) -> int:
    status = await handle.status()
    value = await door.output(handle.run_id) if status.status == "completed" else None
    if output.json:
        document = {"run_id": str(handle.run_id), "created": handle.created, "flow": status.flow}
        output.document({**document, "status": status.status, "output": value, "error": status.error})
    elif status.status == "completed":
        print_output(output, value)
    if status.status == "failed":
        output.error(RunFailed(status.error or "failed", run_id=handle.run_id))
    elif status.status == "cancelled":
        output.error(RunCancelled("cancelled", run_id=handle.run_id))
    else:
        took = (status.ended_at or status.started_at) - status.started_at
        output.say(
            f"[quiet]{len(status.steps)} steps · {duration(took.total_seconds() * 1000)} · {handle.run_id}[/quiet]"
        )
    return code_of(status.status)


def _told(output: Output, handle: RunHandle) -> int:
    if output.json:
        output.document({"run_id": str(handle.run_id), "created": handle.created})
        return exits.OK
    output.text(str(handle.run_id))
    if not handle.created:
        output.say("[quiet]it had been started before, by the same key[/quiet]")
    return exits.OK


def _left(output: Output, handle: RunHandle, *, works: bool) -> None:
    goes_on = "goes on once a worker has its flow" if works else "goes on"
    output.say(
        f"[warn]no longer waiting.[/warn] The run is stored and {goes_on}; look at it by\n"
        f"  pgnexus flow run {handle.run_id}"
    )
