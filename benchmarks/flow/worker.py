"""One worker process of a measurement: it starts the runs it is told on its input, and works until that ends."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.flow.cases import Portion
from benchmarks.flow.shapes import SHAPES
from benchmarks.flow.ways import WAYS
from benchmarks.stage.child import greet, standard_input


async def work(way: str, url: str, shape: str, batch: int) -> None:
    worker = WAYS[way].worker(url, shape, batch)
    told = await standard_input()
    async with worker.working():
        greet("ready")
        while line := await told.readline():
            await worker.start(Portion.from_json(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("url")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--batch", type=int, required=True)
    given = parser.parse_args()
    asyncio.run(work(given.way, given.url, given.shape, given.batch))


if __name__ == "__main__":
    main()
