"""`pgnexus flow cancel`, `retry`, `signal`, `pause`, `resume`: what changes runs and flows."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from pgnexus.cli import exits
from pgnexus.cli.flow.door import Door, opened
from pgnexus.cli.flow.input import read_json
from pgnexus.cli.flow.run import RunId
from pgnexus.cli.verb import Cli, verb
from pgnexus.errors import NotWaiting, UnknownRun
from pgnexus.flow.runs.status import RunStatus, StepStatus

FlowName = Annotated[str, typer.Argument(metavar="FLOW", help="The flow's name in the database.")]


@verb
async def cancel(
    cli: Cli, run_ids: Annotated[list[str], typer.Argument(metavar="RUN_ID...", help="The runs.")]
) -> int:
    """Cancel runs; steps under way are given up, steps that wait wait no more.

    Exit code 0: all were cancelled by this; 1: some had ended before; 6: some are unknown.
    """
    outcomes: list[str] = []
    async with opened(cli) as door:
        for given in run_ids:
            outcomes.append(await _cancelled(cli, door, given))
    if "unknown" in outcomes:
        return exits.UNKNOWN
    return exits.FAILED if "ended before" in outcomes else exits.OK


async def _cancelled(cli: Cli, door: Door, given: str) -> str:
    try:
        run_id = await door.run_id(given)
        outcome = "cancelled" if await door.executor.cancel(run_id) else "ended before"
        given = str(run_id)
    except UnknownRun:
        outcome = "unknown"
    _tell(cli, given, outcome)
    return outcome


@verb
async def retry(cli: Cli, run_id: RunId) -> int:
    """Run what failed in a run once more, with all attempts before it; what succeeded is kept.

    Exit code 0: it runs again; 1: it had not failed.
    """
    async with opened(cli) as door:
        found = await door.run_id(run_id)
        retried = await door.executor.retry(found)
        state = "retried" if retried else (await door.executor.status(found)).status
    _tell(cli, str(found), state if retried else f"{state}: only a run that has failed can be retried")
    return exits.OK if retried else exits.FAILED


@verb
async def signal(
    cli: Cli,
    run_id: RunId,
    step: Annotated[str, typer.Argument(help="The step that waits.")],
    payload: Annotated[
        str | None,
        typer.Option("--payload", "-p", help="The step's output: JSON, @FILE, or - for stdin; else null."),
    ] = None,
    task: Annotated[int, typer.Option(min=0, help="Which task, where the step is a map.")] = 0,
) -> int:
    """Bring a step of a run what it waits for.

    Exit code 0: it was taken; 1: the step does not wait for a signal.
    """
    value = read_json("--payload", payload)
    async with opened(cli) as door:
        found = await door.run_id(run_id)
        try:
            await door.executor.signal(found, step, value, task_index=task)
        except NotWaiting as error:
            raise NotWaiting(await _why_not(door, found, step, task)) from error
    _tell(cli, str(found), f"{step} has its signal", outcome="taken")
    return exits.OK


async def _why_not(door: Door, run_id: UUID, slug: str, task: int) -> str:
    """The state of the step, and the steps that do wait."""
    status = await door.executor.status(run_id)
    step = next((one for one in status.steps if one.slug == slug), None)
    waiting = [one.slug for one in status.steps if one.waits_for == "signal"]
    others = f"{', '.join(waiting)} waits for one" if waiting else "none of its steps waits for one"
    if step is None:
        steps = ", ".join(one.slug for one in status.steps)
        return f"run {run_id} has no step {slug!r}: there are {steps}; {others}"
    state = _state(status, step)
    where = f"{slug}, task {task}," if step.kind == "map" else slug
    return f"run {run_id}: {where} does not wait for a signal: {state}; {others}"


def _state(status: RunStatus, step: StepStatus) -> str:
    if step.status == "created":
        open_deps = [slug for slug in step.depends_on if status.step(slug).ended_at is None]
        return (
            f"it has not begun, as {', '.join(open_deps)} has not ended" if open_deps else "it has not begun"
        )
    if step.status == "started" and step.waits_for not in (None, "signal"):
        return f"it waits for {step.waits_for}"
    how = f" ({step.skip_reason or step.error})" if step.skip_reason or step.error else ""
    tasks = f" with {step.tasks_total:,} tasks" if step.kind == "map" and step.tasks_total is not None else ""
    return f"the step is {step.status}{tasks}{how}, the run {status.status}"


@verb
async def pause(cli: Cli, name: FlowName) -> None:
    """Have no worker take tasks of a flow until `flow resume`. What runs goes on; runs can be started."""
    async with opened(cli) as door:
        await door.executor.pause(await door.slug(name))
    _tell_flow(cli, name, "paused")


@verb
async def resume(cli: Cli, name: FlowName) -> None:
    """Let workers take tasks of a flow again."""
    async with opened(cli) as door:
        await door.executor.resume(await door.slug(name))
    _tell_flow(cli, name, "resumed")


def _tell(cli: Cli, run_id: str, words: str, *, outcome: str | None = None) -> None:
    if cli.output.json:
        cli.output.document({"run_id": run_id, "outcome": outcome or words.partition(":")[0]})
    else:
        cli.output.text(f"{run_id}  {words}")


def _tell_flow(cli: Cli, name: str, outcome: str) -> None:
    if cli.output.json:
        cli.output.document({"flow": name, "outcome": outcome})
    else:
        cli.output.text(f"{name}  {outcome}")
