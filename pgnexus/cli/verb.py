"""Under every verb: the options that all share, its settings and output, and its end as an exit code."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.logging import RichHandler

from pgnexus.cli import exits
from pgnexus.cli.output import Output
from pgnexus.errors import InvalidSettings, PgnexusError
from pgnexus.printable import one_line, visible
from pgnexus.settings import Settings

_PANEL: Final = "Options of every verb"

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="PostgreSQL to use, as PGNEXUS_DATABASE_URL; without it the embedded one.",
        rich_help_panel=_PANEL,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Directory of the embedded PostgreSQL, as PGNEXUS_DATA_DIR.",
        rich_help_panel=_PANEL,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, errors too (on stderr).", rich_help_panel=_PANEL)
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Print the log, and tracebacks.", rich_help_panel=_PANEL)
]
SHARED: Final[Mapping[str, tuple[Any, Any]]] = {
    "database_url": (DatabaseUrl, None),
    "data_dir": (DataDir, None),
    "json": (Json, False),
    "verbose": (Verbose, False),
}


class Cli:
    """What a verb is given beside its own options."""

    def __init__(self, shared: Mapping[str, Any]) -> None:
        self._shared = shared
        self.verbose = bool(shared["verbose"])
        self.output = Output(json=bool(shared["json"]))

    def settings(self, *, flows: bool = False, **overrides: Any) -> Settings:
        """The settings of all sources, those of the command line above all; ``flows`` are for `up` to run."""
        overrides |= {} if flows else {"flows": []}
        database_url, data_dir = self._shared["database_url"], self._shared["data_dir"]
        settings = Settings.load(database_url=database_url, data_dir=data_dir, **overrides)
        if data_dir is not None and settings.database_url is not None:
            raise InvalidSettings(
                "--data-dir is for the embedded PostgreSQL, but database_url is set; unset one of them"
            )
        return settings


def verb(function: Callable[..., Awaitable[int | None]]) -> Callable[..., None]:
    """Make a command of an async function: give it a `Cli`, and make an exit code of what it returns or raises."""

    @functools.wraps(function)
    def command(ctx: typer.Context, **given: Any) -> None:
        before = ctx.obj or {}
        cli = Cli({name: given.pop(name) or before.get(name) for name in SHARED})
        raise typer.Exit(_run(cli, function(cli, **given)))

    own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.name != "cli"),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in SHARED.items()
        ),
    ]
    command.__dict__.pop("__wrapped__")  # typer would look at the function behind
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _run(cli: Cli, body: Awaitable[int | None]) -> int:
    try:
        with _logging(cli):
            return asyncio.run(_awaited(body)) or exits.OK
    except PgnexusError as error:
        if cli.verbose:
            cli.output.traceback()
        cli.output.error(error)
        return exits.code_for(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return exits.INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None
        return exits.OK
    except Exception as error:
        if cli.verbose:
            cli.output.traceback()
        cli.output.fault(error)
        return exits.INTERNAL


async def _awaited(body: Awaitable[int | None]) -> int | None:
    return await body


class _OneLine(logging.Formatter):
    """A record is one line, whatever its words; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return visible(super().formatException(ei))


def _log_handler(console: Console) -> logging.Handler:
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    return handler


@contextmanager
def _logging(cli: Cli) -> Iterator[None]:
    """What pgnexus logs, on stderr; warnings only, unless --verbose."""
    logger = logging.getLogger("pgnexus")
    handler = _log_handler(cli.output.err)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if cli.verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
