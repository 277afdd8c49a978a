"""`pgnexus up`: the process that serves requests, until it is told to stop."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from pgnexus.app import App
from pgnexus.cli import exits
from pgnexus.cli.flow.input import flow_of
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output
from pgnexus.cli.verb import Cli, verb
from pgnexus.db.connection import display
from pgnexus.errors import InvalidSettings
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.messages import ModelInfo
from pgnexus.settings import Settings


@verb
async def up(
    cli: Cli,
    only: Annotated[
        str | None, typer.Option(help="nexus, poller or flows, for a process of its own.")
    ] = None,
    flow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME", help="A flow to run, too, beside those of the settings; may be repeated."
        ),
    ] = None,
) -> int:
    """Run a nexus and a poller, and flows.

    Flows are named package.module:name, by --flow or in the setting `flows`, and looked for from the current
    directory on. --only nexus and --only poller leave those of the settings to others.

    On SIGTERM and Ctrl-C it takes nothing more, lets calls under way finish for drain_timeout seconds and
    gives the rest back. A second Ctrl-C gives back at once, a third ends the process as it is. Nothing is lost.
    """
    runs, settings, flows = _what(cli, only, flow or [])
    with Interrupt.handled() as interrupt:
        with cli.output.working("starting") as working:
            app = App(settings, caller="poller" in runs, nexus="nexus" in runs, flows=flows, report=working)
            interrupt.on_second(app.hurry)
            await app.start()
        try:
            _ready(cli.output, app, runs, flows)
            await interrupt.wait()
            _draining(cli.output, app)
        finally:
            await app.stop()
    _tell(cli.output, {"event": "stopped"}, "[quiet]stopped; nothing is lost[/quiet]")
    return exits.OK


def _what(cli: Cli, only: str | None, named: list[str]) -> tuple[list[str], Settings, list[Blueprint]]:
    """What runs here, and the flows among it."""
    if only not in (None, "nexus", "poller", "flows"):
        raise InvalidSettings(f"--only: {only!r} is none of nexus, poller, flows")
    settings = cli.settings(flows=only in (None, "flows"))
    flows = [flow_of(path) for path in dict.fromkeys([*settings.flows, *named])]
    if only == "flows" and not flows:
        raise InvalidSettings("--only flows: there are none; name one by --flow, or in the setting flows")
    runs = [only] if only else ["nexus", "poller"]
    runs += ["flows"] if flows and "flows" not in runs else []
    return runs, settings.model_copy(update={"flows": []}), flows


def _listed(words: list[str]) -> str:
    """Words as a sentence has them.

    >>> _listed(["nexus", "poller", "flows"])
    'nexus, poller and flows'
    """
    return " and ".join([one for one in (", ".join(words[:-1]), words[-1]) if one])


def _ready(output: Output, app: App, runs: list[str], flows: list[Blueprint]) -> None:
    event: dict[str, Any] = {"event": "ready", "runs": runs, "pid": os.getpid(), "database": display(app.url)}
    lines = [
        f"[good]ready[/good]: {_listed(runs)}, pid {os.getpid()}",
        f"  database  {'embedded PostgreSQL' if app.settings.database_url is None else event['database']}",
    ]
    if app.nexus is not None:
        event["instance_id"] = str(app.nexus.registry.instance_id())
        lines.append(f"  instance  {event['instance_id']}")
        event["providers"] = _providers(app.nexus.router.available_models(), app.settings.default_provider)
        lines.append(
            f"  providers {', '.join(event['providers']) or '[warn]none: see pgnexus models[/warn]'}"
        )
    if flows:
        event["flows"] = [flow.name for flow in flows]
        lines.append(f"  flows     {', '.join(event['flows'])}")
    _tell(output, event, "\n".join(lines) + "\n[quiet]Ctrl-C stops[/quiet]")


def _providers(models: list[ModelInfo], default: str | None) -> list[str]:
    """Who is asked here, in the order of preference."""
    if default is not None:
        return [default]
    return list(dict.fromkeys(info.provider for info in models if info.usable))


def _draining(output: Output, app: App) -> None:
    calls = app.nexus.consumer.in_flight if app.nexus is not None else 0
    tasks = app.flows.worker.in_flight if app.flows is not None and app.flows.worker is not None else 0
    under_way = [
        f"{count:,} {what}" for count, what in ((calls, "calls"), (tasks, "tasks of flows")) if count
    ]
    words = "stopping"
    if under_way:
        words += (
            f": {_listed(under_way)} may finish for {app.settings.drain_timeout:g} s "
            "(Ctrl-C again gives them back at once)"
        )
    _tell(output, {"event": "draining", "in_flight": calls, "tasks": tasks}, words)


def _tell(output: Output, event: dict[str, Any], markup: str) -> None:
    if output.json:
        output.document(event)
    else:
        output.say(markup)
