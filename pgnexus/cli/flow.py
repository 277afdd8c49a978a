"""`pgnexus flow`: the verbs about flows and their runs, and under `schedule` those about schedules."""

from __future__ import annotations

import typer

from pgnexus.cli import flow_control, flow_look, flow_run, flow_schedule, flow_start

flow = typer.Typer(
    name="flow",
    help="Workflows: what there is, how runs go on, and what starts them.",
    no_args_is_help=True,
)
schedule = typer.Typer(name="schedule", help="Runs that start by the clock.", no_args_is_help=True)

for name, command in {
    "list": flow_look.list_flows,
    "show": flow_look.show,
    "start": flow_start.start,
    "runs": flow_look.runs,
    "run": flow_run.run,
    "cancel": flow_control.cancel,
    "retry": flow_control.retry,
    "signal": flow_control.signal,
    "pause": flow_control.pause,
    "resume": flow_control.resume,
}.items():
    flow.command(name, no_args_is_help=False)(command)

for name, command in {
    "list": flow_schedule.list_schedules,
    "put": flow_schedule.put,
    "remove": flow_schedule.remove,
    "pause": flow_schedule.pause,
    "resume": flow_schedule.resume,
    "preview": flow_schedule.preview,
}.items():
    schedule.command(name, no_args_is_help=False)(command)

flow.add_typer(schedule)
