"""Where the worker's Python spends its time, as py-spy sees it from outside."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_RATE = 250  # samples a second


def sampler() -> str | None:
    """The program, when it is installed."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


@asynccontextmanager
async def sampled(pid: int, path: Path | None) -> AsyncIterator[None]:
    """Sample the process during the block, and write its stacks to ``path``, one a line with its count."""
    program = sampler()
    if path is None or program is None:
        yield
        return
    process = await asyncio.create_subprocess_exec(
        program, "record", "--pid", str(pid), "--output", str(path), "--format", "raw", "--function",
        "--rate", str(_RATE), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def hot_functions(path: Path) -> list[tuple[str, float, float]]:
    """Of each function its share of the samples by itself, and with what it called; the hottest first."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    total = own.total()
    return [(name, count / total, whole[name] / total) for name, count in own.most_common()]
