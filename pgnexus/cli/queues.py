"""`pgnexus queues`: how much waits where, and how fast it goes."""

from __future__ import annotations

from rich import box
from rich.table import Table

from pgnexus.app import App
from pgnexus.caller.queue_health import QueueHealth
from pgnexus.cli.output import duration
from pgnexus.cli.verb import Cli, verb


@verb
async def queues(cli: Cli) -> None:
    """Show depth and age of the queues, and the rate and latency of the last five minutes."""
    app = App(cli.settings(), nexus=False)
    await app.start()
    try:
        health = await app.service.queue_metrics()
    finally:
        await app.stop()
    if cli.output.json:
        cli.output.document(health)
        return
    cli.output.show(_table(health))
    for line in _activity(health):
        cli.output.show(line)


def _table(health: QueueHealth) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("queue", no_wrap=True)
    for name in ("depth", "ready", "oldest", "archived"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in health.queues:
        oldest = duration(one.oldest_seconds * 1000) if one.oldest_seconds is not None else ""
        table.add_row(one.queue, f"{one.depth:,}", f"{one.ready:,}", oldest, f"{one.archived:,}")
    return table


def _activity(health: QueueHealth) -> list[str]:
    alive = f"{health.instances} nexus alive" if health.instances else "[warn]no nexus alive[/]"
    lines = [f"{alive}, {health.in_flight:,} in flight, {health.waiting_for_retry:,} waiting for a retry"]
    if health.calls:
        lines.append(
            f"last 5 minutes: {health.calls:,} provider calls ({health.calls_per_second:.1f}/s), "
            f"{health.failed_calls:,} failed"
        )
        lines.append(
            f"latency: p50 {duration(health.p50_ms)}, p95 {duration(health.p95_ms)}, p99 {duration(health.p99_ms)}"
        )
    failures = sorted(health.failures.items(), key=lambda item: -item[1])
    lines += [f"[warn]failed: {name}, {calls:,} times[/]" for name, calls in failures]
    return lines
