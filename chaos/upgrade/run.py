"""One run: an old version under load, the migration, both versions, the new one alone, and then the ledger."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

from chaos.crew.audit import Book, Verdict, audit, read_account, wait_until_ended
from chaos.crew.crew import Crew
from chaos.process import Process
from chaos.server import PostgresServer
from chaos.upgrade.releases import Release

_PATIENCE = 180.0  # seconds for what was asked to end
_COMPLAINT = re.compile(r"\b(?:ERROR|WARNING|Error|error|failed)\b.*")


class UpgradeRun:
    """``release`` and this code on one database, which is migrated under load."""

    def __init__(self, path: Path, die: random.Random, release: Release) -> None:
        self.migrated: tuple[float, float] = (0.0, 0.0)  # when that began and ended, by time.monotonic()
        self.parted = 0.0  # when the old ones were told to leave
        self._die = die
        self._release = release
        self._server = PostgresServer(path / "server")
        self._path = path
        self._old: list[Process] = []

    async def run(self) -> tuple[Verdict, Book]:
        python = await asyncio.to_thread(self._release.install)
        await asyncio.to_thread(self._server.initialise)
        await asyncio.to_thread(self._server.start)
        url = await asyncio.to_thread(self._server.create_database, "app")
        self._crew = crew = Crew(self._path, url, self._die)
        try:
            await self._migrate("first", python)
            await crew.start_provider()
            await self._join(python)
            self._old = [*crew.workers, *crew.callers]
            await asyncio.sleep(self._die.uniform(4, 7))
            self.migrated = await self._migrate("second", None)
            await asyncio.sleep(self._die.uniform(2, 4))
            await self._join(None)
            await asyncio.sleep(self._die.uniform(5, 8))
            await self._part()
            await asyncio.sleep(self._die.uniform(2, 4))
            for caller in list(crew.callers):
                await crew.leave(caller, _PATIENCE)
            await asyncio.to_thread(wait_until_ended, url, _PATIENCE)
            book = Book.read(crew.ledgers)
            return await asyncio.to_thread(audit, url, book, crew.account, crew.deaths, []), book
        finally:
            await crew.stop()
            await asyncio.to_thread(self._server.stop, "immediate")

    def calls_of_old(self) -> tuple[int, int]:
        """Calls of the old workers after the migration, and when the new ones were there, too."""
        old = {process.name for process in self._old}
        calls = [call for of_one in read_account(self._crew.account).values() for call in of_one]
        since = [call for call in calls if call.worker in old and call.began > self.migrated[1]]
        beside = min((call.began for call in calls if call.worker not in old), default=float("inf"))
        return len(since), sum(call.began > beside for call in since)

    def stalled(self) -> tuple[float, float]:
        """The longest acceptance before the migration began, and the longest while it ran or just after, in seconds."""
        book = Book.read(self._crew.ledgers)
        began, ended = self.migrated
        before = [took for at, took in book.took if at < began]
        while_it_ran = [took for at, took in book.took if at > began and at - took < ended + 1]
        return max(before, default=0.0), max(while_it_ran, default=0.0)

    def complaints(self) -> Counter[str]:
        """What the old ones logged but of the provider, without what differs from one to the next."""
        lines = [line for process in self._old for line in process.lines if " provider " not in line]
        found = (match.group() for line in lines if (match := _COMPLAINT.search(line)))
        return Counter(re.sub(r"[0-9a-f-]{36}|\d+", "#", line)[:160] for line in found)

    async def _migrate(self, name: str, python: Path | None) -> tuple[float, float]:
        began = time.monotonic()
        migration = await Process.start(
            *(f"{name} migration", ("pgnexus", "--database-url", self._crew.url, "migrate")),
            self._path / f"{name}-migration.log",
            {"PYTHONSAFEPATH": "1"} if python else {},
            ready=None,
            python=python or sys.executable,
        )
        if await migration.wait():
            raise RuntimeError(f"{migration.name} failed:\n" + "\n".join(migration.lines[-20:]))
        return began, time.monotonic()

    async def _join(self, python: Path | None) -> None:
        for _ in range(2):
            await self._crew.start_worker(python)
        for _ in range(2):
            await self._crew.start_caller(self._die.uniform(4, 12), python)

    async def _part(self) -> None:
        """The old ones leave, in any order: some in peace, some not."""
        self.parted = time.monotonic()
        for process in self._die.sample(self._old, len(self._old)):
            if self._die.random() < 0.4:
                await self._crew.kill(process)
            else:
                await self._crew.leave(process, _PATIENCE)
            await asyncio.sleep(self._die.uniform(0, 1))
