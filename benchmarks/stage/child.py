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
        self.pid = process.pid

    @property
    def left(self) -> bool:
        """Whether it is gone, by itself or by a fault."""
        return self._process.returncode is not None

    def tell(self, words: str) -> None:
        """Write one line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n".encode())

    async def hear(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark ended; what it said is above")
        return line.decode().strip()

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
async def child(
    module: str, *arguments: object, python: str | Path = sys.executable
) -> AsyncIterator[Child]:
    """Run ``python -m module arguments`` for the duration of the block."""
    process = await asyncio.create_subprocess_exec(
        python, "-m", module, *map(str, arguments),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
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


async def standard_input() -> asyncio.StreamReader:
    """In the child: what the parent tells; it ends when the parent says goodbye, or is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def until_input_ends() -> None:
    """In the child: wait for that end."""
    await (await standard_input()).read()


def greet(words: object) -> None:
    """In the child: it is ready."""
    print(words, flush=True)
