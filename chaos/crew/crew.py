"""The processes of a run, by name: a provider, callers with their ledgers, and workers; and when each was killed."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from chaos.process import Process
from chaos.server import free_port

HERE = Path(__file__).parent
VENDOR = "openai"
_UP = {
    "PGNEXUS_DEFAULT_PROVIDER": VENDOR,
    "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
}


class Crew:
    """All of them, in the directory ``path``."""

    def __init__(self, path: Path, url: str, die: random.Random) -> None:
        self.path = path
        self.url = url
        self.account = path / "account.jsonl"
        self.deaths: dict[str, float] = {}  # of workers, by time.monotonic()
        self.workers: list[Process] = []
        self.callers: list[Process] = []
        self._die = die
        self._provider: Process | None = None
        self._port = free_port()
        self._numbers = 0

    async def start_provider(self) -> None:
        """It answers everything, so that nothing but what is done here explains a call that is made again."""
        given = ("--port", self._port, "--account", self.account, "--seed", 0, "--healthy")
        self._provider = await Process.start(
            "provider", ("chaos.provider", *given), self.path / "provider.log"
        )

    async def start_worker(self, python: Path | None = None) -> Process:
        """A `pgnexus up`, of this version or of the one that ``python`` has."""
        name = self._name("up")
        base = f"http://127.0.0.1:{self._port}/v1/{name}/alpha"
        environment = {**_UP, "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": base}
        worker = await self._start(name, ("pgnexus", "--database-url", self.url, "up"), environment, python)
        self.workers.append(worker)
        return worker

    async def start_caller(self, rate: float, python: Path | None = None) -> Process:
        name = self._name("caller")
        given = ("--url", self.url, "--ledger", self.path / f"{name}.jsonl", "--rate", rate)
        caller = await self._start(name, ("caller", *given, "--seed", self._die.getrandbits(32)), {}, python)
        self.callers.append(caller)
        return caller

    async def kill(self, process: Process) -> None:
        """With no goodbye."""
        self.deaths[process.name] = time.monotonic()
        await process.kill()
        for crew in (self.workers, self.callers):
            if process in crew:
                crew.remove(process)

    async def leave(self, process: Process, patience: float) -> None:
        """Ask it to leave when its work is done; raises when it does not, or not in peace."""
        async with asyncio.timeout(patience):
            code = await process.terminate()
        for crew in (self.workers, self.callers):
            if process in crew:
                crew.remove(process)
        if code != 0:
            raise RuntimeError(f"{process.name} left with {code}: {process.lines[-5:]}; see {process.log}")

    async def stop(self) -> None:
        """Kill whoever still lives."""
        for process in [*self.callers, *self.workers, *([self._provider] if self._provider else [])]:
            if process.alive:
                process.thaw()
                await process.kill()

    @property
    def ledgers(self) -> list[Path]:
        return sorted(self.path.glob("caller*.jsonl"))

    def _name(self, kind: str) -> str:
        self._numbers += 1
        return f"{kind}{self._numbers}"

    async def _start(
        self, name: str, arguments: tuple[object, ...], environment: dict[str, str], python: Path | None
    ) -> Process:
        """Of another version nothing of this directory may be imported but the caller."""
        path = {"PYTHONPATH": str(HERE), "PYTHONSAFEPATH": "1"} if python else {"PYTHONPATH": str(HERE)}
        return await Process.start(
            *(name, arguments, self.path / f"{name}.log", {**os.environ, **environment, **path}),
            python=python or sys.executable,
        )
