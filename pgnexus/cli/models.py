"""`pgnexus models`: who could answer, what each can and costs, and why a request goes to whom."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, get_args

import typer
from pydantic_core import to_jsonable_python
from rich import box
from rich.markup import escape
from rich.table import Table

from pgnexus.app import App
from pgnexus.cli.output import Output
from pgnexus.cli.verb import Cli, verb
from pgnexus.complexity import TASK_COMPLEXITY, Complexity, complexity_for
from pgnexus.errors import InvalidRequest
from pgnexus.messages import ModelInfo
from pgnexus.nexus.router import LLMRouter
from pgnexus.nexus.selection import Conditions, Explanation, Needs, Wanted
from pgnexus.nexus.standings import read_standings
from pgnexus.providers import build_providers
from pgnexus.providers.catalogue import catalogue
from pgnexus.providers.models import ModelCard, card
from pgnexus.settings import Settings

_GAP = 2  # characters between two columns of a tight table


@verb
async def models(
    cli: Cli,
    complexity: Annotated[
        str | None, typer.Argument(help="With --explain: simple, medium or complex, or a known task type.")
    ] = None,
    task_type: Annotated[str | None, typer.Argument(help="With --explain: the task type.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell which models such a request goes to, and why.")
    ] = False,
    agent: Annotated[str | None, typer.Option("--agent", help="Of this agent.")] = None,
    vision: Annotated[bool, typer.Option("--vision", help="With images.")] = False,
    tools: Annotated[bool, typer.Option("--tools", help="With tools.")] = False,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="Answered by a JSON schema.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="With a prompt of so many tokens.")] = 0,
    model: Annotated[str, typer.Option("--model", help="That names this model.")] = "auto",
    provider: Annotated[str, typer.Option("--provider", help="That names this provider.")] = "auto",
    live: Annotated[
        bool, typer.Option("--live", help="Look in the database for latency, success and breakers.")
    ] = False,
) -> None:
    """List the models, the usable ones first; of the others, why not. Or explain a choice.

    The list is what the live nexus instances know; when none is alive, what a nexus in this place could use. With
    --explain it is told, from the settings and keys of this place and without a database, to which models a request
    goes in which order, and why each one is there, or is not; with --live also how they do at the moment.
    """
    if not explain:
        if complexity is not None:
            raise InvalidRequest("COMPLEXITY and TASK_TYPE are for --explain")
        await _list(cli)
        return
    needs = Needs(vision, None, tools, json_schema, tokens)
    hardness, kind = _task(complexity, task_type)
    wanted = Wanted(hardness, kind, agent, model, provider, needs)
    settings = cli.settings()
    explanation = await _explained(settings, wanted, await _conditions(settings) if live else None)
    if cli.output.json:
        cli.output.document(explanation.to_json())
    else:
        _tell(cli.output, explanation)


def _task(word: str | None, task_type: str | None) -> tuple[Complexity, str | None]:
    """The complexity and task type that were meant; a known task type may stand alone."""
    if word is None:
        return complexity_for(None), None
    for complexity in get_args(Complexity):
        if word == complexity:
            return complexity, task_type
    if task_type is None and word in TASK_COMPLEXITY:
        return complexity_for(word), word
    raise InvalidRequest(f"{word!r} is none of {', '.join(get_args(Complexity))}")


async def _conditions(settings: Settings) -> Conditions:
    app = App(settings, caller=False, nexus=False)
    await app.start()
    try:
        conditions, _ = await read_standings(app.db)
    finally:
        await app.stop()
    return conditions


async def _explained(settings: Settings, wanted: Wanted, conditions: Conditions | None) -> Explanation:
    providers = build_providers(settings)
    try:
        return LLMRouter(settings, providers).explain(wanted, conditions)
    finally:
        for provider in providers.values():
            await provider.close()


def _tell(output: Output, told: Explanation) -> None:
    for line in _headlines(told):
        output.show(line)
    table = _table("", "model", "by" if told.rules.order != "route" else "", "why")
    for one in told.considered:
        place = str(one.position) if one.position is not None else "·"
        why = _short(one.candidate.provider, one.why_out) if one.why_out else one.origin
        style = "" if one.position is not None else "quiet"
        table.add_row(place, escape(str(one.candidate)), one.value, escape(why), style=style)
    output.show(table)
    if told.refusal is not None:
        output.show(f"[bad]refused[/]: {escape(told.refusal)}")
    others: dict[str, list[str]] = {}
    for provider, reason in told.others:
        others.setdefault(_short(provider, reason), []).append(provider)
    for reason, providers in others.items():
        output.show(f"[quiet]{escape(', '.join(providers))}: {escape(reason)}[/]")


def _headlines(told: Explanation) -> list[str]:
    if not told.route:
        return ["no route: a request that names its model gets that one or none"]
    where = "settings" if told.from_settings else "built in"
    orders = {"route": "as written", "price": "by price", "latency": "by latency"}
    order = orders.get(told.rules.order, "by success rate")
    lines = [f"route [key]{escape(told.route)}[/] ({where}), {order}"]
    if len(told.looked_for) > 1:
        lines.append(
            f"[quiet]looked for {escape(', '.join(told.looked_for))}: the first that exists holds[/]"
        )
    return lines + [f"[quiet]{rule}[/]" for rule in _rules(told)]


def _rules(told: Explanation) -> list[str]:
    """Those of the route's rules that are not the usual ones."""
    rules = []
    if told.rules.cache is not None:
        rules.append(f"answers may be given again for {told.rules.cache:g} s")
    if told.rules.share == "all":
        rules.append("cached and shared answers go to all agents")
    if not told.rules.longer_context:
        rules.append("a prompt too long for the first goes to no other")
    if told.rules.over_limit == "wait":
        rules.append("a candidate over its limit is waited for")
    return rules


async def _list(cli: Cli) -> None:
    settings = cli.settings()
    app = App(settings, nexus=False)
    await app.start()
    try:
        alive = await app.service.live_instances()
        found = await app.service.get_available_models() if alive else await _own_view(settings)
    finally:
        await app.stop()
    found.sort(key=lambda info: not info.usable)
    cards = _cards(found, settings)
    if cli.output.json:
        for info, known in zip(found, cards, strict=True):
            cli.output.document(info._asdict() | to_jsonable_python(_facts(known)))
        return
    if any(info.usable for info in found):
        cli.output.show(_usable(found, cards))
    if not all(info.usable for info in found):
        cli.output.show(_others(found, cli.output.out.width))
    if not alive:
        cli.output.say("[quiet]no nexus is alive; this is what one started here could use[/quiet]")


async def _own_view(settings: Settings) -> list[ModelInfo]:
    providers = build_providers(settings)
    try:
        return LLMRouter(settings, providers).available_models()
    finally:
        for provider in providers.values():
            await provider.close()


def _cards(found: Sequence[ModelInfo], settings: Settings) -> list[ModelCard]:
    """What this place knows of each model; a vendor that only the nexus knows is a stranger here."""
    vendors = catalogue(settings)
    return [
        card(vendors[info.provider], info.model, settings)
        if info.provider in vendors
        else ModelCard(info.provider, info.model)
        for info in found
    ]


def _facts(known: ModelCard) -> dict[str, Any]:
    names = [name for name in ModelCard.__dataclass_fields__ if name not in ("provider", "model")]
    return {name: getattr(known, name) for name in names}


def _short(provider: str, reason: str) -> str:
    """A reason without what a table says already.

    >>> _short("xai", "provider xai has no key: set XAI_API_KEY where the nexus runs")
    'set XAI_API_KEY'
    """
    return reason.removeprefix(f"provider {provider} has no key: ").removesuffix(" where the nexus runs")


def _usable(found: Sequence[ModelInfo], cards: Sequence[ModelCard]) -> Table:
    table = _table("", "provider", "model", "context", "can", "$/M in, out", tight=True)
    for info, known in zip(found, cards, strict=True):
        if info.usable:
            facts = (_length(known), _abilities(known), _prices(known))
            table.add_row("[good]✓[/]", escape(info.provider), escape(info.model), *facts)
    return table


def _others(found: Sequence[ModelInfo], width: int) -> Table:
    """One row for each provider and reason; its models are cut where there is no room for them."""
    others: dict[tuple[str, str], list[str]] = {}
    for info in found:
        if not info.usable:
            why = _short(info.provider, info.reason or "")
            others.setdefault((info.provider, why), []).append(info.model)
    table = _table("", "provider", "why not", tight=True)
    left = width - 4 - sum(max(map(len, texts)) for texts in zip(*others, strict=True)) - 3 * _GAP
    table.add_column("models", no_wrap=True, overflow="ellipsis", max_width=max(left, len("models")))
    for (provider, why), names in others.items():
        table.add_row("·", escape(provider), escape(why), escape(", ".join(names)), style="quiet")
    return table


def _table(*columns: str, tight: bool = False) -> Table:
    padding = (0, _GAP - 1, 0, 0) if tight else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=name in ("", "provider", "context", "$/M in, out"))
    return table


def _length(known: ModelCard) -> str:
    """Thousands of tokens.

    >>> _length(ModelCard("openai", "gpt-4o", context_length=128_000)), _length(ModelCard("ours", "m"))
    ('128k', '?')
    """
    if known.context_length is None:
        return "?"
    thousands = known.context_length / 1000
    return f"{thousands:.1f}k" if thousands < 10 else f"{thousands:,.0f}k"


def _abilities(known: ModelCard) -> str:
    """What it can, and with a question mark what nobody knows."""
    abilities = {"images": known.vision, "tools": known.tools, "schema": known.json_schema}
    return " ".join(name if can else f"{name}?" for name, can in abilities.items() if can is not False)


def _prices(known: ModelCard) -> str:
    return f"{_dollars(known.input_price)} / {_dollars(known.output_price)}"


def _dollars(price: Decimal | None) -> str:
    """Of a million tokens.

    >>> _dollars(Decimal("2.50")), _dollars(Decimal(10)), _dollars(None)
    ('2.5', '10', '?')
    """
    return "?" if price is None else f"{price.normalize():f}"
