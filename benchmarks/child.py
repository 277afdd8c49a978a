"""A process of its own for each part that is measured, so that none borrows another's core or memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_PATIENCE = 60.0  # seconds for a child to start or to leave


class Child:
    """A Python module that says one line when it is ready, and leaves when its input ends."""

    def __init__(self, process: asyncio.subprocess.Process, greeting: str) -> None:
        self._process = process
        self.greeting = greeting

    def memory(self) -> tuple[float | None, float | None]:
        """Resident memory in MB, now and at its peak; None where /proc does not tell."""
        found: dict[str, float] = {}
        with suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("VmRSS", "VmHWM"):
                    found[name] = round(int(value.split()[0]) / 1024, 1)
        return found.get("VmRSS"), found.get("VmHWM")


@asynccontextmanager
async def child(module: str, *arguments: object) -> AsyncIterator[Child]:
    """Run ``python -m module arguments`` for the duration of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *map(str, arguments),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_PATIENCE):
            greeting = (await process.stdout.readline()).decode().strip()
        if not greeting:
            raise RuntimeError(f"{module} did not start; what it said is above")
        yield Child(process, greeting)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def until_input_ends() -> None:
    """In the child: wait for the parent to say goodbye, or to be gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def greet(words: object) -> None:
    """In the child: it is ready."""
    print(words, flush=True)
