"""The command `pgnexus`: thin verbs over the application. Exit codes are in `pgnexus.cli.exits`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final, cast

import typer

from pgnexus.cli import exits
from pgnexus.cli.ask import ask
from pgnexus.cli.batch import batch
from pgnexus.cli.costs import costs
from pgnexus.cli.demo import demo
from pgnexus.cli.doctor import doctor
from pgnexus.cli.flow.group import flow
from pgnexus.cli.installation import migrate, roles, version
from pgnexus.cli.models import models
from pgnexus.cli.output import Output
from pgnexus.cli.prune import prune
from pgnexus.cli.queues import queues
from pgnexus.cli.requests import cancel, requests, result, retry
from pgnexus.cli.top.verb import top
from pgnexus.cli.up import up
from pgnexus.cli.verb import DatabaseUrl, DataDir, Json, Verbose

__all__ = ["app", "main"]

# UsageError, which typer has had in more than one place
_UsageError: Final = cast("type[Exception]", typer.BadParameter.__base__)

_EPILOG: Final = (
    "Every setting is also read from pgnexus.toml and from the environment (PGNEXUS_DATABASE_URL, …). "
    "Without a database of your own an embedded PostgreSQL is started on demand. "
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 database, 4 no result in time, 5 cancelled, 6 unknown, "
    "70 a fault in pgnexus itself, 130 interrupted."
)

app = typer.Typer(
    name="pgnexus",
    help="Durable LLM calls on PostgreSQL.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for panel, verbs in {
    "Ask": (ask, batch, demo),
    "Look and change": (result, requests, cancel, retry, costs, queues, top, models),
    "Run": (up, migrate, roles, prune, doctor, version),
}.items():
    for command in verbs:
        app.command(rich_help_panel=panel, no_args_is_help=False)(command)
app.add_typer(flow, rich_help_panel="Look and change")


@app.callback()
def _shared(
    ctx: typer.Context,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    ctx.obj = {"database_url": database_url, "data_dir": data_dir, "json": json, "verbose": verbose}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(words, prog_name="pgnexus", standalone_mode=False)
    except typer.Abort:
        code = exits.INTERRUPTED
    except _UsageError as error:
        if said := _words(error):  # none after the help, which is shown to who gives no verb
            Output(json="--json" in words).wrong_usage(said)
        code = exits.USAGE
    _leave(code if isinstance(code, int) else exits.OK)


def _words(error: Exception) -> str:
    said = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    return f"{said} (see {context.command_path} --help)" if said and context is not None else str(said)


def _leave(code: int) -> None:
    if sys.stdout is None:  # its reader is gone: nothing may be flushed there on the way out
        os._exit(code)
    sys.exit(code)
