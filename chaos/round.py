"""One round: work under faults, then all is healed, it settles, and the ledgers are laid side by side."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from chaos import logs
from chaos.caller import Caller
from chaos.draw import Drawn
from chaos.faults import hands
from chaos.ledger.evidence import Evidence, rows
from chaos.ledger.verdict import Verdict, judge, left
from chaos.ledger_file import LedgerFile
from chaos.provider import MOST_TOKENS
from chaos.queries import load
from chaos.server import PostgresServer
from chaos.system import System
from pgnexus.app import App
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.settings import Settings

SETTLES_WITHIN = 150.0  # seconds after the last heal until nothing is under way
CALM = 2.0  # seconds of work after the last heal
GONE_WITHIN = 15.0  # seconds more until all that was held is let go
_PROBES = (("alpha", "m1"), ("alpha", "m3"), ("beta", "m2"))


async def play(seed: int, seconds: float, path: Path, server: PostgresServer) -> Verdict:
    """One round in the directory ``path``, in a database of its own; green ones leave nothing behind."""
    _make(path)
    database = f"chaos_{seed}"
    url = await asyncio.to_thread(server.create_database, database)
    await schema.migrate(url)
    system = System(seed, path, server, database)
    db = await Database.open(url, pool_size=2)
    try:
        await db_script(db, "prepare")
        await system.start()
        await hands.strike(system, seconds)
        verdict = await _settled(system, db)
    finally:
        await system.stop()
        await db.close()
    if verdict.green:
        await asyncio.to_thread(server.drop_database, database)
        await asyncio.to_thread(shutil.rmtree, path)
    return verdict


def _make(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


async def db_script(db: Database, name: str) -> None:
    """Run one of our own files."""
    async with db.connection() as connection:
        await connection.execute(load(name))


async def _settled(system: System, db: Database) -> Verdict:
    """Heal, go on for a moment, wait, judge."""
    await system.heal()
    await asyncio.sleep(CALM)
    healed, wrong = time.monotonic(), []
    settled: float | None = None
    try:
        async with asyncio.timeout(SETTLES_WITHIN):
            wrong += await system.callers_done()
            await _until(lambda: _over(db))
        settled = time.monotonic() - healed
        wrong += await _breakers_close(system, db)
        async with asyncio.timeout(GONE_WITHIN):
            await _until(lambda: _nothing_left(db, system))
    except TimeoutError:
        (system.path / "unended.txt").write_text("\n".join(await _unended(db)))
    wrong += await _read_logs(system, db)
    _keep(system)
    seen = await Evidence.read(db, system.ledgers, system.account, system.record)
    verdict = await judge(db, system.seed, seen)
    verdict.settled = settled
    verdict.wrong += wrong
    if settled is None:
        verdict.stuck.append(f"not settled {SETTLES_WITHIN:g} s after the last heal; see unended.txt")
    return verdict


def _keep(system: System) -> None:
    """Who was struck when, by the clock of the provider's account, for those who look into it."""
    lines = [
        f"{one.began:.2f} {one.healed:.2f} {one.fault} {' '.join(one.targets)}"
        for one in system.record.struck
    ]
    (system.path / "faults.txt").write_text("\n".join(lines) + "\n")


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again for what nobody tells us of."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def _over(db: Database) -> bool:
    """Whether every request has ended, on both sides."""
    try:
        [row] = await rows(db, "over")
    except DatabaseUnavailable:
        return False
    return bool(row.n == 0)


async def _nothing_left(db: Database, system: System) -> bool:
    return not await left(db, system.record)


async def _breakers_close(system: System, db: Database) -> list[str]:
    """A provider that answers again is asked again: no breaker stays open."""
    app = App(Settings.load(database_url=system.url), nexus=False)
    await app.start()
    try:
        asking = Caller(app, system.url, LedgerFile(system.path / "probe.ledger"))
        for provider, model in _PROBES:
            options = {"provider": provider, "model": model, "max_tokens": MOST_TOKENS}
            async with asyncio.timeout(40):
                await asking.ask(Drawn("call", (f"well-{provider}-{model}",), 0.0, options))
    except TimeoutError:
        return [f"{provider}/{model} is not asked any more"]
    finally:
        await app.stop()
    try:
        async with asyncio.timeout(5):
            await _until(lambda: _closed(db))
    except TimeoutError:
        return [f"an open breaker: {row}" for row in await rows(db, "open_breakers")]
    return []


async def _closed(db: Database) -> bool:
    return not await rows(db, "open_breakers")


async def _unended(db: Database) -> list[str]:
    """All that is known of what does not end."""
    names = ("unended", "live_workers")
    return [f"{name} {row}" for name in names for row in await rows(db, name)]


async def _read_logs(system: System, db: Database) -> list[str]:
    """Note which workers were late, and when they were last alive; what is wrong by the logs."""
    offset = time.time() - time.monotonic()
    signs = {row.worker_id: row.last_heartbeat_at.timestamp() - offset for row in await rows(db, "signs")}
    for name, process in system.everybody.items():
        lines = process.lines
        system.record.late[name] = logs.late(lines, system.path / f"{name}.clock", offset)
        instance = logs.instance(lines)
        if instance in signs:
            system.record.last_signs[name] = signs[instance]
    gone = [one.process for one in system.members.values() if one.role == "worker" and not one.process.alive]
    return [
        *logs.complaints(system.everybody),
        *(f"{one.name} ended by itself; see {one.log}" for one in gone),
    ]
