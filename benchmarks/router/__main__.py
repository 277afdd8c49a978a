"""Measure calls through the router and our wire beside aiohttp bare, the OpenAI SDK and any-llm, in turns.

python -m benchmarks.router [--quick] [--rounds 5] [--calls 4000] [--memory] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Awaitable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report.figures import Figures, Results, summary
from benchmarks.report.machine import machine
from benchmarks.report.tables import show_tables
from benchmarks.router import report
from benchmarks.router.contestants import CONTESTANTS, MODEL
from benchmarks.router.measure import STEPS, first, memory, speed
from benchmarks.stage.provider_server import provider_server

_MODULES = {"openai": "openai", "any-llm": "any_llm"}
_PACKAGES = {"openai": "openai", "any-llm": "any-llm-sdk"}


def installed() -> list[str]:
    """The contestants that are here: the SDKs of others are none of our needs."""
    return [name for name in CONTESTANTS if name not in _MODULES or find_spec(_MODULES[name]) is not None]


async def measure(given: argparse.Namespace, console: Console) -> Results:
    """Everything that was asked for; the contestants take turns, so that a busy moment hits all."""
    results: Results = {}

    async def note(measurement: str, name: str, figures: Awaitable[Figures]) -> None:
        found = await figures
        results.setdefault(measurement, {}).setdefault(name, []).append(found)
        said = ", ".join(f"{value:,.4g} {key}" for key, value in found.items() if value is not None)
        console.print(f"  {measurement}, {name}: {said}", style="dim")

    async with provider_server(model=MODEL) as server:
        for number in range(1, given.rounds + 1):
            console.print(f"round {number} of {given.rounds}", style="bold")
            for name in given.contestant or installed():
                await note("speed", name, speed(server, name, given.calls, given.at_once))
                await note("first words", name, first(server, name, given.streams))
        if given.memory:
            steps = tuple(step for step in STEPS if step <= given.memory_calls)
            await note("memory", "our router", memory(server, steps, given.at_once))
    return results


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, help="how often everything is measured: 5")
    parser.add_argument("--calls", type=int, help="calls of a contestant in a round: 4,000")
    parser.add_argument("--streams", type=int, help="streamed calls of a contestant in a round: 200")
    parser.add_argument("--at-once", type=int, default=100, help="calls at once: 100")
    parser.add_argument("--quick", action="store_true", help="one round of a quarter of the calls")
    parser.add_argument("--contestant", action="append", choices=CONTESTANTS)
    parser.add_argument("--memory", action="store_true", help="measure memory, too, up to 100,000 calls")
    parser.add_argument("--memory-calls", type=int, default=STEPS[-1], help="up to so many: 100,000")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    given = parser.parse_args(arguments)
    defaults = (
        {"rounds": 1, "calls": 1000, "streams": 50}
        if given.quick
        else {"rounds": 5, "calls": 4000, "streams": 200}
    )
    for name, amount in defaults.items():
        setattr(given, name, amount if getattr(given, name) is None else getattr(given, name))
    return given


async def bench(given: argparse.Namespace, command: str, console: Console) -> dict[str, Any]:
    """All that was asked for, printed, and what goes into the JSON file."""
    where = machine()
    where["packages"] |= {name: version(_PACKAGES[name]) for name in installed() if name in _PACKAGES}
    results = await measure(given, console)
    where["load_at_end"] = os.getloadavg()[0]
    show_tables(results, console)
    ratios = report.ratios(results)
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:g}")
    console.print(command, soft_wrap=True, highlight=False)
    console.print(
        f"{where['cores']} cores; load {where['load_at_start']:.1f} to {where['load_at_end']:.1f}; "
        f"calls at once: {given.at_once}"
    )
    if given.markdown is not None:
        given.markdown.write_text(report.markdown(results))
    return {
        "command": command,
        "machine": where,
        "calls": given.calls,
        "at_once": given.at_once,
        "ratios": ratios,
        "summary": summary(results),
        "runs": results,
    }


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _arguments(arguments)
    command = shlex.join(["python", "-m", "benchmarks.router", *arguments])
    found = asyncio.run(bench(given, command, Console()))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
