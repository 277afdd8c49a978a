"""Flows that can be named, by settings and by processes to be killed."""

import asyncio

from pgnexus.flow.define.graph import Flow

flow = Flow("greeting")


@flow.step
async def hello(input: str) -> str:
    return f"Hello {input}"


letters = Flow("letters")


@letters.step
async def items(input: int) -> list[int]:
    return list(range(input))


@letters.map(over=items)
async def item(x: int) -> int:
    await asyncio.sleep(0.02)
    return x


@letters.step
async def total(item: list[int]) -> int:
    return sum(item)
