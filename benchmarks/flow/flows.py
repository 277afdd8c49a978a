"""The same graphs as in shapes.py, as a user of pgnexus writes them."""

from __future__ import annotations

from benchmarks.flow.shapes import Input, elements
from pgnexus import Flow

one = Flow("one")


@one.step(slug="first")
async def only(input: Input) -> int:
    return input["n"]


chain = Flow("chain")


@chain.step
async def first(input: Input) -> int:
    return input["n"]


@chain.step
async def second(first: int) -> int:
    return first


@chain.step
async def third(second: int) -> int:
    return second


spread_out = Flow("spread")


@spread_out.step
async def spread(input: Input) -> list[str]:
    return elements(input["width"], input["element_bytes"])


@spread_out.map(over=spread)
async def work(element: str) -> str:
    return element


@spread_out.step
async def gather(work: list[str]) -> int:
    return len(work)


FLOWS = {flow.name: flow for flow in (one, chain, spread_out)}
