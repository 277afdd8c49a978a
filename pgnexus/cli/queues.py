"""`pgnexus queues` and `models`: how much waits where, and who could answer."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from pgnexus.app import App
from pgnexus.caller.queue_health import QueueHealth
from pgnexus.cli.output import duration
from pgnexus.cli.verb import Cli, verb
from pgnexus.messages import ModelInfo
from pgnexus.nexus.router import LLMRouter
from pgnexus.providers import build_providers
from pgnexus.settings import Settings


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


@verb
async def models(cli: Cli) -> None:
    """List the models, the usable ones first; of the others, why not.

    Asks the live nexus instances; when none is alive, it tells what a nexus in this place could use.
    """
    settings = cli.settings()
    app = App(settings, nexus=False)
    await app.start()
    try:
        alive = await app.service.live_instances()
        found = await app.service.get_available_models() if alive else await _own_view(settings)
    finally:
        await app.stop()
    found.sort(key=lambda info: not info.usable)
    if cli.output.json:
        for info in found:
            cli.output.document(info._asdict())
        return
    cli.output.show(_models(found))
    if not alive:
        cli.output.say("[quiet]no nexus is alive; this is what one started here could use[/quiet]")


async def _own_view(settings: Settings) -> list[ModelInfo]:
    providers = build_providers(settings)
    try:
        return LLMRouter(settings, providers).available_models()
    finally:
        for provider in providers.values():
            await provider.close()


def _short(provider: str, reason: str) -> str:
    """A reason without what a table says already.

    >>> _short("xai", "provider xai has no key: set XAI_API_KEY where the nexus runs")
    'set XAI_API_KEY'
    """
    return reason.removeprefix(f"provider {provider} has no key: ").removesuffix(" where the nexus runs")


def _models(found: Sequence[ModelInfo]) -> Table:
    """A row a usable model; the others in one row for each provider and reason."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("provider", no_wrap=True)
    table.add_column("model")
    table.add_column("why not")
    others: dict[tuple[str, str], list[str]] = {}
    for info in found:
        if info.usable:
            table.add_row("[good]✓[/]", escape(info.provider), escape(info.model), "")
        else:
            others.setdefault((info.provider, info.reason or ""), []).append(info.model)
    for (provider, reason), names in others.items():
        table.add_row(
            "·", escape(provider), escape(", ".join(names)), escape(_short(provider, reason)), style="quiet"
        )
    return table
