"""`pgnexus top`: the verb."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.live import Live

from pgnexus.app import database_url
from pgnexus.cli import exits
from pgnexus.cli.top.frame import frame
from pgnexus.cli.top.keys import quits
from pgnexus.cli.top.watcher import Seen, Watcher
from pgnexus.cli.verb import Cli, verb
from pgnexus.db import schema
from pgnexus.db.database import Database


@verb
async def top(
    cli: Cli,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    window: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds that rates and latencies are of.")
    ] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
) -> int:
    """Show live what happens: queues, calls, failures, breakers, limits, spend. q or Ctrl-C leaves.

    Where stdout is no terminal it prints one frame, with --json one JSON object.
    """
    settings = cli.settings()
    async with database_url(settings) as url:
        db = await Database.open(
            url, connect_timeout=settings.connect_timeout, pool_size=2, application_name="pgnexus top"
        )
        try:
            await schema.verify(db)
            watcher = Watcher(db, lease=settings.worker_lease, window=window, interval=interval)
            if cli.output.json:
                cli.output.document(_document(await watcher.once()))
            elif once or not cli.output.out.is_terminal:
                cli.output.show(frame(await watcher.once(), cli.output.out.width))
            else:
                await _live(cli, watcher)
        finally:
            await db.close()
    return exits.OK


async def _live(cli: Cli, watcher: Watcher) -> None:
    quit_ = asyncio.Event()
    console = cli.output.out
    try:
        with quits(quit_), Live(console=console, screen=True, auto_refresh=False) as live:
            while not quit_.is_set():
                seen = await watcher.look()
                live.update(frame(seen, console.width, console.height), refresh=True)
                try:
                    async with asyncio.timeout(watcher.pause):
                        await quit_.wait()
                except TimeoutError:
                    pass
    finally:
        await watcher.close()


def _document(seen: Seen) -> dict[str, Any]:
    assert seen.view is not None
    assert seen.spent is not None
    today, month = seen.spent
    return {**asdict(seen.view), "spent": {"today": asdict(today), "month": asdict(month)}}
