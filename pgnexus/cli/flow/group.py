"""`pgnexus flow`: the verbs about flows and their runs, and under `schedule` those about schedules."""

from __future__ import annotations

import typer

from pgnexus.cli.flow import control, look, run, schedules, start

flow = typer.Typer(
    name="flow",
    help="Workflows: what there is, how runs go on, and what starts them.",
    no_args_is_help=True,
)
schedule = typer.Typer(name="schedule", help="Runs that start by the clock.", no_args_is_help=True)

for name, command in {
    "list": look.list_flows,
    "show": look.show,
    "start": start.start,
    "runs": look.runs,
    "run": run.run,
    "cancel": control.cancel,
    "retry": control.retry,
    "signal": control.signal,
    "pause": control.pause,
    "resume": control.resume,
}.items():
    flow.command(name, no_args_is_help=False)(command)

for name, command in {
    "list": schedules.list_schedules,
    "put": schedules.put,
    "remove": schedules.remove,
    "pause": schedules.pause,
    "resume": schedules.resume,
    "preview": schedules.preview,
}.items():
    schedule.command(name, no_args_is_help=False)(command)

flow.add_typer(schedule)
