"""The one worker process of a measurement: raw pgmq's, or pgnexus's as `pgnexus up` runs it."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.contestants.floor_worker import FloorWorker
from benchmarks.contestants.system import settings_for
from benchmarks.stage.child import greet, until_input_ends
from pgnexus import garbage
from pgnexus.app import App


async def _floor(url: str, base_url: str, concurrency: int) -> None:
    async with FloorWorker(url, f"{base_url}/chat/completions", concurrency).running():
        greet("ready")
        await until_input_ends()


async def _system(url: str, base_url: str, concurrency: int, *, poller: bool) -> None:
    app = App(settings_for(url, base_url, concurrency), caller=poller, nexus=True)
    await app.start()
    garbage.collect_seldom()
    greet("ready")
    await until_input_ends()
    await app.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["floor", "both", "nexus"])
    parser.add_argument("url")
    parser.add_argument("base_url")
    parser.add_argument("--concurrency", type=int, default=1000)
    given = parser.parse_args()
    if given.what == "floor":
        asyncio.run(_floor(given.url, given.base_url, given.concurrency))
    else:
        asyncio.run(_system(given.url, given.base_url, given.concurrency, poller=given.what == "both"))


if __name__ == "__main__":
    main()
