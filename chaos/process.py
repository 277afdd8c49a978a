"""One child process: what it says goes to a log file, and any signal can be sent to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent  # from where `chaos` and its flows can be imported
PATIENCE = 90.0  # seconds for a child to say that it is ready; a busy machine is slow


class Process:
    """A running child. ``name`` is unique in its round, ``log`` the file with all that it said."""

    def __init__(self, name: str, log: Path, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[object],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        ready: str | None = "ready",
        python: Path | str = sys.executable,
    ) -> Process:
        """Run ``python -m arguments``; returns when it has said ``ready`` (None: at once).

        Raises RuntimeError when it ends before, or does not come to it.
        """
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-m", *map(str, arguments)),
            env={**os.environ, **(environment or {})},
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**24,
        )
        child = cls(name, log, process)
        said = asyncio.Event()
        child._reader = asyncio.create_task(child._read(ready, said))
        if ready is not None:
            await child._until(said)
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def lines(self) -> list[str]:
        """What it has said so far."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    async def kill(self) -> None:
        """End it as the kernel does: no goodbye."""
        self.send(signal.SIGKILL)
        await self.wait()

    async def terminate(self) -> int:
        """Ask it to leave, and wait; its exit code."""
        self.send(signal.SIGTERM)
        return await self.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def send(self, what: signal.Signals) -> None:
        """Nothing happens when it is gone."""
        with suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, what)  # asyncio's own would reap it, and lose its exit code

    async def wait(self) -> int:
        """Wait until it is gone; its exit code."""
        code = await self._process.wait()
        if self._reader is not None:
            await self._reader
        return code

    async def _until(self, said: asyncio.Event) -> None:
        waiting = asyncio.create_task(said.wait())
        assert self._reader is not None
        done, _ = await asyncio.wait(
            {waiting, self._reader}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()
        if not said.is_set():
            what = "did not become ready" if not done else "ended before it was ready"
            self.send(signal.SIGKILL)
            raise RuntimeError(f"{self.name} {what}; see {self.log}\n" + "\n".join(self.lines[-30:]))

    async def _read(self, ready: str | None, said: asyncio.Event) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with self.log.open("ab", buffering=0) as log:
            while line := await stdout.readline():
                log.write(line)
                if ready is not None and ready.encode() in line:
                    said.set()
