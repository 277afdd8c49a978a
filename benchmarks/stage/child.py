"""A process of its own for each part that is measured, so that none borrows another's core or memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

_PATIENCE = 60.0  # seconds for a child to start or to leave


class Child:
    """A Python module that says one line when it is ready, and leaves when its input ends."""

    def __init__(self, process: asyncio.subprocess.Process, greeting: str) -> None:
        self._process = process
        self.greeting = greeting
        self.pid = process.pid

    @property
    def pids(self) -> list[int]:
        """Whose time and memory count for it."""
        return [self.pid]

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


class Crew:
    """Several children that do the same."""

    def __init__(self, members: Sequence[Child]) -> None:
        self._members = members
        self.pids = [member.pid for member in members]

    def memory(self) -> tuple[float | None, float | None]:
        """Resident memory in MB of all together, now and the sum of their peaks."""
        now, peak = zip(*(member.memory() for member in self._members), strict=True)
        return _sum(now), _sum(peak)


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(value for value in values if value is not None)


@asynccontextmanager
async def child(module: str, *arguments: object, python: str | Path = sys.executable) -> AsyncIterator[Child]:
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


@asynccontextmanager
async def crew(count: int, module: str, *arguments: object) -> AsyncIterator[Crew]:
    """So many of them, started at once."""
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(child(module, *arguments)) for _ in range(count)]
        yield Crew(await asyncio.gather(*starting))


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
