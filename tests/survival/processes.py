"""Real processes of pgnexus and of PostgreSQL, to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.errors import DatabaseUnavailable
from tests.system import until

READY = "ready"


class Up:
    """One `pgnexus up` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, database_url: str, *arguments: str, **environ: str) -> Up:
        """Start it; returns when it says that it is ready."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pgnexus", "--database-url", database_url, "up", *arguments),
            env=os.environ | environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        up = cls(process)
        await up._until_ready()
        return up

    async def kill(self) -> None:
        """End it as the kernel does: no goodbye."""
        self._process.kill()
        await self._gone()

    async def terminate(self) -> int:
        """Ask it to drain; its exit code."""
        self._process.terminate()
        return await self._gone()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def _gone(self) -> int:
        if self._reader is not None:
            await self._reader
        return await self._process.wait()

    async def _until_ready(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        async with asyncio.timeout(30):
            while line := (await stdout.readline()).decode():
                self.lines.append(line)
                if READY in line:
                    self._reader = asyncio.create_task(self._read(stdout))
                    return
        raise AssertionError(f"up ended before it was ready: {''.join(self.lines)}")

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        while line := (await stdout.readline()).decode():
            self.lines.append(line)


@asynccontextmanager
async def up(database_url: str, *arguments: str, **environ: str) -> AsyncIterator[Up]:
    """A running `Up` that is killed when the test ends, if it still lives."""
    process = await Up.start(database_url, *arguments, **environ)
    try:
        yield process
    finally:
        if process._process.returncode is None:
            process.thaw()
            await process.kill()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """An open `Database`."""
    db = await Database.open(url)
    try:
        yield db
    finally:
        await db.close()


async def restart(server: EmbeddedServer, how: signal.Signals) -> None:
    """End the server by this signal, and start it again once it is gone."""
    postmaster = int((server.data_dir / "postgresql" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, how)
    await until(lambda: _unreachable(server.url))
    await asyncio.to_thread(server.start)


async def _unreachable(url: str) -> bool:
    try:
        async with opened(url):
            return False
    except DatabaseUnavailable:
        return True
