"""`pgnexus flow run`: one run and its steps as a tree, once or until the run ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pgnexus.cli import exits
from pgnexus.cli.flow.door import Door, opened
from pgnexus.cli.flow.graph import Graph
from pgnexus.cli.flow.picture import RunPicture
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output
from pgnexus.cli.verb import Cli, verb
from pgnexus.errors import PgnexusError
from pgnexus.flow.runs.status import RunEvent, RunState

_LOOK: Final = 1.0  # seconds between looks when nothing is told
_BREATH: Final = 0.1  # seconds between two looks at least
_COSTS: Final = 5.0  # seconds between looks for costs
_SHOWN: Final = 4000  # characters of an output on a terminal
_PAYLOAD: Final = 100  # characters of one in a line
_CODES: Final[dict[RunState, int]] = {
    "completed": exits.OK,
    "failed": exits.FAILED,
    "cancelled": exits.CANCELLED,
    "started": exits.TIMEOUT,
}

RunId = Annotated[
    str, typer.Argument(metavar="RUN_ID", help="The run, or the first characters of its id, 8 at least.")
]


@verb
async def run(
    cli: Cli,
    run_id: RunId,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Follow the run until it ends; in a pipe its events, one a line."),
    ] = False,
) -> int:
    """Show a run: a tree of its steps, what each is at or came to, and its output.

    Exit code 0: it completed; 1: it failed; 4: it is under way; 5: it was cancelled.
    """  # fmt: skip
    with Interrupt.handled() as interrupt:
        async with opened(cli) as door:
            watched = Watched(door, await door.run_id(run_id))
            if not watch:
                return await _show(cli.output, watched)
            ended = await interrupt.unless(_follow(cli.output, watched))
    if ended is None:
        cli.output.say("[warn]no longer watching.[/warn] The run goes on.")
        return exits.INTERRUPTED
    return ended


class Watched:
    """A run, and what was learned of it so far."""

    def __init__(self, door: Door, run_id: UUID) -> None:
        self.door = door
        self.run_id = run_id
        self._graph: Graph | None = None
        self._costs: dict[str, Any] = {}
        self._costs_at = float("-inf")

    async def picture(self) -> RunPicture:
        """The run as it is now. What its LLM steps cost is looked up now and then, and at the end."""
        status = await self.door.executor.status(self.run_id)
        self._graph = graph = self._graph or await self.door.graph(status.flow, exact=True)
        asks = any(node.kind == "llm" for node in graph.nodes) or any(
            s.waits_for == "llm" for s in status.steps
        )
        time = asyncio.get_running_loop().time()
        if asks and (status.ended_at or time - self._costs_at >= _COSTS):
            self._costs, self._costs_at = await self.door.costs(status), time
        return RunPicture(status, graph, self._costs, await self.door.now(), await self.door.workers())

    async def until_end(self) -> None:
        """Return when the run has ended."""
        async for _ in self.door.executor.watch(self.run_id):
            pass

    async def live(self, console: Console) -> RunPicture:
        """Draw the run until it ends, then take the drawing away; its last picture."""
        changed = asyncio.Event()

        async def listen() -> None:
            async for _ in self.door.executor.watch(self.run_id):
                changed.set()

        listening = asyncio.create_task(listen())
        try:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    changed.clear()
                    picture = await self.picture()
                    live.update(picture.render(console.width), refresh=True)
                    if picture.status.ended_at:
                        live.transient = True
                        return picture
                    await asyncio.sleep(_BREATH)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK):
                            await changed.wait()
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError, PgnexusError):  # the looks above meet the same faults
                await listening


async def _follow(output: Output, watched: Watched) -> int:
    if output.out.is_terminal and not output.json:
        picture = await watched.live(output.out)
        return await _print(output, watched, picture)
    async for event in watched.door.executor.watch(watched.run_id):
        if output.json:
            output.document(asdict(event))
        else:
            output.text(_line(event))
    return code_of((await watched.door.executor.status(watched.run_id)).status)


async def _show(output: Output, watched: Watched) -> int:
    return await _print(output, watched, await watched.picture())


async def _print(output: Output, watched: Watched, picture: RunPicture) -> int:
    status = picture.status
    value = await watched.door.output(watched.run_id) if status.status == "completed" else None
    if output.json:
        output.document({**picture.document(), "output": value})
    else:
        output.show(picture.render(output.out.width))
        if status.status == "completed":
            output.show()
            print_output(output, value)
    return code_of(status.status)


def code_of(status: RunState) -> int:
    """The exit code for a run in this state."""
    return _CODES[status]


def print_output(output: Output, value: Any) -> None:
    """A run's output as JSON; on a terminal not more than can be looked at."""
    text = to_json(value, indent=2).decode()
    hidden = len(text) - _SHOWN
    cut = output.out.is_terminal and hidden > 0
    output.out.print(Text(text[:_SHOWN] if cut else text), soft_wrap=True)
    if cut:
        output.say(f"[quiet]… {hidden:,} characters more; --json prints all[/quiet]")


def _line(event: RunEvent) -> str:
    """An event for people, in one line."""
    payload = event.payload
    if event.event_type.endswith((":failed", ":skipped", ":cancelled")):
        said = ": ".join(str(payload[key]) for key in ("skip_reason", "error_message") if payload.get(key))
    elif "output" in payload:
        said = to_json(payload["output"]).decode()
    elif payload.get("tasks", 1) != 1:
        said = f"{payload['tasks']:,} tasks"
    else:
        said = ""
    said = " ".join(said.split())
    said = said if len(said) <= _PAYLOAD else f"{said[:_PAYLOAD]}…"
    at = event.at.astimezone().isoformat(timespec="milliseconds")
    return f"{at}  {event.event_type:<14}  {event.step or '':<16}  {said}".rstrip()
