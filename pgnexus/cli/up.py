"""`pgnexus up`: the process that serves requests, until it is told to stop."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer

from pgnexus import garbage
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
from pgnexus.watch.metrics_server import MetricsServer


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
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve Prometheus metrics there; 0: on any free port."),
    ] = None,
) -> int:
    """Run a nexus and a poller, and flows.

    Flows are named package.module:name, by --flow or in the setting `flows`, and looked for from the current
    directory on. --only nexus and --only poller leave those of the settings to others.

    On SIGTERM and Ctrl-C it takes nothing more, lets calls under way finish for drain_timeout seconds and
    gives the rest back. A second Ctrl-C gives back at once, a third ends the process as it is. Nothing is lost.
    """
    runs, settings, flows = _what(cli, only, flow or [], metrics_port)
    with Interrupt.handled() as interrupt:
        with cli.output.working("starting") as working:
            app = App(settings, caller="poller" in runs, nexus="nexus" in runs, flows=flows, report=working)
            interrupt.on_second(app.hurry)
            await app.start()
            garbage.collect_seldom()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(app.stop)
            metrics = await _metrics(app, stack)
            _ready(cli.output, app, runs, flows, metrics)
            await interrupt.wait()
            _draining(cli.output, app)
    _tell(cli.output, {"event": "stopped"}, "[quiet]stopped; nothing is lost[/quiet]")
    return exits.OK


async def _metrics(app: App, stack: AsyncExitStack) -> str | None:
    """Serve metrics if the settings say so; where."""
    settings = app.settings
    if settings.metrics_port is None:
        return None
    server = MetricsServer(
        settings.metrics_host,
        settings.metrics_port,
        app.url,
        lease=settings.worker_lease,
        connect_timeout=settings.connect_timeout,
    )
    return (await stack.enter_async_context(server)).url


def _what(
    cli: Cli, only: str | None, named: list[str], metrics_port: int | None
) -> tuple[list[str], Settings, list[Blueprint]]:
    """What runs here, and the flows among it."""
    if only not in (None, "nexus", "poller", "flows"):
        raise InvalidSettings(f"--only: {only!r} is none of nexus, poller, flows")
    settings = cli.settings(flows=only in (None, "flows"), metrics_port=metrics_port)
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


def _ready(output: Output, app: App, runs: list[str], flows: list[Blueprint], metrics: str | None) -> None:
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
    if metrics is not None:
        event["metrics"] = metrics
        lines.append(f"  metrics   {metrics}")
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
