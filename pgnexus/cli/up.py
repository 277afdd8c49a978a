"""`pgnexus up`: the process that serves requests, until it is told to stop."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from pgnexus.app import App
from pgnexus.cli import exits
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output
from pgnexus.cli.verb import Cli, verb
from pgnexus.db.connection import display
from pgnexus.errors import InvalidSettings
from pgnexus.messages import ModelInfo


@verb
async def up(
    cli: Cli,
    only: Annotated[str | None, typer.Option(help="nexus or poller, for a process of its own.")] = None,
) -> int:
    """Run a nexus and a poller.

    On SIGTERM and Ctrl-C it takes nothing more, lets calls under way finish for drain_timeout seconds and
    gives the rest back. A second Ctrl-C gives back at once, a third ends the process as it is. Nothing is lost.
    """
    if only not in (None, "nexus", "poller"):
        raise InvalidSettings(f"--only: {only!r} is neither nexus nor poller")
    runs = [only] if only else ["nexus", "poller"]
    with Interrupt.handled() as interrupt:
        with cli.output.working("starting") as working:
            app = App(cli.settings(), caller="poller" in runs, nexus="nexus" in runs, report=working)
            interrupt.on_second(app.hurry)
            await app.start()
        try:
            _ready(cli.output, app, runs)
            await interrupt.wait()
            _draining(cli.output, app)
        finally:
            await app.stop()
    _tell(cli.output, {"event": "stopped"}, "[quiet]stopped; nothing is lost[/quiet]")
    return exits.OK


def _ready(output: Output, app: App, runs: list[str]) -> None:
    event: dict[str, Any] = {"event": "ready", "runs": runs, "pid": os.getpid(), "database": display(app.url)}
    lines = [
        f"[good]ready[/good]: {' and '.join(runs)}, pid {os.getpid()}",
        f"  database  {'embedded PostgreSQL' if app.settings.database_url is None else event['database']}",
    ]
    if app.nexus is not None:
        event["instance_id"] = str(app.nexus.registry.instance_id())
        lines.append(f"  instance  {event['instance_id']}")
        event["providers"] = _providers(app.nexus.router.available_models(), app.settings.default_provider)
        lines.append(
            f"  providers {', '.join(event['providers']) or '[warn]none: see pgnexus models[/warn]'}"
        )
    _tell(output, event, "\n".join(lines) + "\n[quiet]Ctrl-C stops[/quiet]")


def _providers(models: list[ModelInfo], default: str | None) -> list[str]:
    """Who is asked here, in the order of preference."""
    if default is not None:
        return [default]
    return list(dict.fromkeys(info.provider for info in models if info.usable))


def _draining(output: Output, app: App) -> None:
    in_flight = app.nexus.consumer.in_flight if app.nexus is not None else 0
    words = "stopping"
    if in_flight:
        words += (
            f": {in_flight:,} calls may finish for {app.settings.drain_timeout:g} s "
            "(Ctrl-C again gives them back at once)"
        )
    _tell(output, {"event": "draining", "in_flight": in_flight}, words)


def _tell(output: Output, event: dict[str, Any], markup: str) -> None:
    if output.json:
        output.document(event)
    else:
        output.say(markup)
