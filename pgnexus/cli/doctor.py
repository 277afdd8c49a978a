"""`pgnexus doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from pgnexus.app import database_url
from pgnexus.cli import exits
from pgnexus.cli.output import Output
from pgnexus.cli.verb import Cli, verb
from pgnexus.db import schema
from pgnexus.db.connection import display
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import DatabaseError, DatabaseUnavailable, InvalidSettings, SchemaMismatch
from pgnexus.messages import REQUEST_QUEUES, RESULT_QUEUE, ModelInfo
from pgnexus.nexus.router import LLMRouter
from pgnexus.providers import build_providers, keys
from pgnexus.providers.catalogue import LOCAL, catalogue
from pgnexus.settings import Settings

State = Literal["ok", "note", "fault"]
_MARKS = {"ok": ("✓", "good"), "note": ("·", "warn"), "fault": ("✗", "bad")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its state, what was found, and what to do where that is not good."""

    check: str
    state: State
    found: str
    advice: str | None = None


@verb
async def doctor(cli: Cli) -> int:
    """Check database, schema, queues, LISTEN, keys, models and whether a nexus is alive; say what to do.

    Exit code 0: all is well; 1: something is to be mended; 3: the database is.
    """
    settings, findings = cli.settings(), list[Finding]()
    async for finding in _examine(settings):
        findings.append(finding)
        if not cli.output.json:
            _print(cli.output, finding)
    faults = [finding for finding in findings if finding.state == "fault"]
    if cli.output.json:
        cli.output.document({"healthy": not faults, "findings": [asdict(finding) for finding in findings]})
    else:
        cli.output.say("[good]all is well[/good]" if not faults else f"[bad]{len(faults)} to be mended[/bad]")
    if any(finding.check in ("database", "schema") for finding in faults):
        return exits.DATABASE
    return exits.FAILED if faults else exits.OK


def _print(output: Output, finding: Finding) -> None:
    mark, style = _MARKS[finding.state]
    line = Table.grid(padding=(0, 1))
    line.add_column()
    line.add_column(width=9)
    line.add_column(overflow="fold")
    line.add_row(Text(mark, style), finding.check, Text(finding.found))
    if finding.advice is not None:
        line.add_row("", "", Text("→ " + finding.advice, "quiet"))
    output.show(line)


async def _examine(settings: Settings) -> AsyncIterator[Finding]:
    own = await _own_models(settings)
    if isinstance(own, Finding):
        yield own
        models: list[ModelInfo] = []
    else:
        models = own
    try:
        async with database_url(settings) as url:
            db = await Database.open(url, connect_timeout=settings.connect_timeout, pool_size=2)
            try:
                async for finding in _examine_database(settings, db, models):
                    yield finding
            finally:
                await db.close()
    except DatabaseError as error:
        ours = settings.database_url is None or not isinstance(error, DatabaseUnavailable)
        advice = None if ours else "check database_url, and that the server runs"
        yield Finding("database", "fault", str(error), advice)
    for finding in _keys(settings):
        yield finding
    yield _local_model(settings, models)


async def _examine_database(
    settings: Settings, db: Database, models: list[ModelInfo]
) -> AsyncIterator[Finding]:
    [server] = await db.query("check_server")
    where = "embedded" if settings.database_url is None else display(db.url)
    yield Finding("database", "ok", f"PostgreSQL {server.version_text}, {where}")
    try:
        await schema.verify(db)
    except SchemaMismatch as error:
        yield Finding("schema", "fault", str(error))
        return
    yield Finding("schema", "ok", "fits this version of pgnexus")
    yield await _queues(db)
    yield await _roles(db)
    yield await _listen(settings, db)
    yield await _nexus(settings, db, models)


async def _queues(db: Database) -> Finding:
    found = {row.queue: row for row in await db.query("queue_metrics")}
    lacking = [name for name in (*REQUEST_QUEUES.values(), RESULT_QUEUE) if name not in found]
    if lacking:
        advice = "restore them from a backup, or select nexus_api.create_queue('NAME') for each"
        return Finding("queues", "fault", f"{', '.join(lacking)} missing", advice)
    depth, archived = (sum(getattr(one, name) for one in found.values()) for name in ("depth", "archived"))
    words = f"all there, {depth:,} messages"
    if archived:
        return Finding(
            "queues", "note", f"{words}, {archived:,} archived", "those could not be read: see pgmq.a_*"
        )
    return Finding("queues", "ok", words)


async def _roles(db: Database) -> Finding:
    [row] = await db.query("roles_exist")
    if row.found:
        return Finding("roles", "ok", "pgnexus_caller and pgnexus_nexus are there")
    return Finding(
        "roles", "note", "not created", "to run the two sides under roles of their own: pgnexus roles"
    )


async def _listen(settings: Settings, db: Database) -> Finding:
    listener = Listener(
        settings.listen_url or db.url, connect_timeout=settings.connect_timeout, probe_url=db.url
    )
    await listener.start()
    try:
        if listener.healthy:
            return Finding("listen", "ok", "a NOTIFY arrives")
    finally:
        await listener.stop()
    return Finding(
        "listen", "fault", f"no NOTIFY arrives at {display(listener.url)}; everything waits for polling",
        "through a pooler in transaction mode set listen_url to the server itself",
    )  # fmt: skip


async def _nexus(settings: Settings, db: Database, own: list[ModelInfo]) -> Finding:
    lease = {"lease": settings.worker_lease}
    [row] = await db.query("live_instances", lease)
    if row.instances:
        usable = [model for model in await db.query("available_models", lease) if model.usable]
        words = f"{row.instances} alive, {len(usable)} models can be used"
        advice = None if usable else "give a key to it: pgnexus models"
        return Finding("nexus", "ok" if usable else "fault", words, advice)
    usable_here = [info for info in own if info.usable]
    if not usable_here:
        advice = "see keys and local" if own else "see providers"
        return Finding("nexus", "fault", "none alive, and none of the models can be used from here", advice)
    return Finding(
        "nexus", "note", "none alive; `ask` and `batch` run their own", "to serve others: pgnexus up"
    )


async def _own_models(settings: Settings) -> list[ModelInfo] | Finding:
    try:
        providers = build_providers(settings)
    except InvalidSettings as error:
        return Finding("providers", "note", str(error), "not needed on a machine that only asks")
    try:
        known = LLMRouter(settings, providers).available_models()
        return [info for info in known if info.provider != LOCAL or settings.local_model]
    finally:
        for provider in providers.values():
            await provider.close()


def _keys(settings: Settings) -> list[Finding]:
    vendors = [vendor for vendor in catalogue(settings).values() if vendor.api_key_env]
    present = [name for vendor in vendors if (name := keys.source(vendor, os.environ)) is not None]
    if present:
        return [Finding("keys", "ok", f"set here: {', '.join(present)}")]
    names = ", ".join(vendor.api_key_env[0] for vendor in vendors if vendor.needs_key)
    return [
        Finding("keys", "note", "none set here", f"for models better than the local one set one of {names}")
    ]


def _local_model(settings: Settings, models: list[ModelInfo]) -> Finding:
    if settings.local_model and not models:
        return Finding(
            "local", "note", "cannot run without what calls providers", "pip install 'pgnexus[local]'"
        )
    local = next((info for info in models if info.provider == LOCAL), None)
    if local is not None and local.usable:
        return Finding("local", "ok", local.model)
    return Finding("local", "note", (local.reason if local else None) or "switched off")
