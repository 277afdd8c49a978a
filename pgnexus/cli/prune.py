"""`pgnexus prune`: what is older than it need be goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich import box
from rich.table import Table

from pgnexus.app import database_url
from pgnexus.caller.retention import parts as caller_parts
from pgnexus.cli.output import size
from pgnexus.cli.requests import moment
from pgnexus.cli.verb import Cli, verb
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.errors import InvalidRequest, UnsuitableDatabase
from pgnexus.flow.retention import parts as flow_parts
from pgnexus.nexus.retention import parts as nexus_parts
from pgnexus.pruning import Part, Pruned
from pgnexus.pruning import prune as prune_parts
from pgnexus.settings import Settings

_KINDS: Final = ("results", "attempts", "request-runs", "flow-runs", "instances", "rejected")
_LEAST: Final = 60.0  # seconds: who has just asked may not have looked yet
_MOST: Final = 3_155_760_000.0


@verb
async def prune(
    cli: Cli,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="What ended longer ago than 12h, 30d, 8w, or before a date; without it what the settings "
            "keep_… say, each for itself.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help=f"Only that of: {', '.join(_KINDS)}; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, tell, and remove nothing.")] = False,
) -> None:
    """Remove what has ended and is old: results, the books, runs, processes that left, messages that were none.

    What has not ended stays, however old it is. It works in small steps beside everything else, and can be stopped
    at any time. A month of results goes at once when all of it may; else its rows go one by one, and their
    space is used again for later ones. A request whose result is gone is unknown: its id could be used again.
    """
    keep = _seconds(older_than)
    kinds = _kinds(only or [])
    settings = cli.settings()
    gone: list[Pruned] = []
    with cli.output.working("looking") as working:
        async with database_url(settings, working) as url:
            db = await Database.open(url, connect_timeout=settings.connect_timeout, pool_size=1)
            try:
                await schema.verify(db)
                chosen = [part for part in await _allowed(db, settings, keep) if part.kind in kinds]
                async for one in prune_parts(db, chosen, dry_run=dry_run):
                    gone.append(one)
                    working(f"{sum(one.rows for one in gone):,} rows so far")
            finally:
                await db.close()
    if cli.output.json:
        cli.output.document({"dry_run": dry_run, "pruned": [asdict(one) for one in gone]})
        return
    if gone:
        cli.output.show(_table(gone, dry_run=dry_run))
    else:
        cli.output.say("the settings keep all of that for ever; say --older-than")
    if dry_run:
        cli.output.say("[quiet]nothing was removed[/quiet]")


async def _allowed(db: Database, settings: Settings, keep: float | None) -> list[Part]:
    """What this role may prune, each part once."""
    [rights] = await db.query("check_rights")
    if not rights.caller and not rights.nexus:
        raise UnsuitableDatabase(
            f"the role {rights.role} may prune nothing: grant pgnexus_caller or pgnexus_nexus to it"
        )
    parts = [
        *(caller_parts(settings, keep) if rights.caller else []),
        *(nexus_parts(settings, keep) if rights.nexus else []),
        *flow_parts(settings, keep),
    ]
    return list({part.name: part for part in parts}.values())


def _kinds(only: Sequence[str]) -> Sequence[str]:
    for kind in only:
        if kind not in _KINDS:
            raise InvalidRequest(f"--only: {kind!r} is none of {', '.join(_KINDS)}")
    return only or _KINDS


def _seconds(older_than: str | None) -> float | None:
    """How long ago; raises `InvalidRequest` when that is nonsense.

    >>> 3599 < _seconds("1h") < 3601
    True
    """
    since = moment(older_than, "--older-than")
    if since is None:
        return None
    keep = (datetime.now(UTC) - since).total_seconds()
    if keep < _LEAST:
        raise InvalidRequest(
            f"--older-than: {older_than!r} is less than a minute ago: what has just ended may not have been looked at"
        )
    if keep > _MOST:
        raise InvalidRequest(f"--older-than: {older_than!r} is more than a century ago")
    return keep


def _table(gone: Sequence[Pruned], *, dry_run: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_footer=len(gone) > 1)
    table.add_column("would go" if dry_run else "went", "total", footer_style="bold", no_wrap=True)
    rows, bytes_ = sum(one.rows for one in gone), sum(one.bytes for one in gone)
    table.add_column("rows", f"{rows:,}", footer_style="bold", justify="right", no_wrap=True)
    table.add_column("bytes", size(bytes_), footer_style="bold", justify="right", no_wrap=True)
    for one in gone:
        table.add_row(one.what, f"{one.rows:,}", size(one.bytes))
    return table
