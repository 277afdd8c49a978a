"""Print an answer while it is given, drop it half-way, and go on reading where it was: python examples/streaming.py

The second part reads in a service of its own, as another process would after a crash or a lost connection.
"""

import asyncio

import pgnexus


async def main() -> None:
    async with pgnexus.open(nexus=True) as llm:
        # Nobody cancels it when the first reader goes: the second one comes back for it.
        async with llm.stream("simple", "Tell me a story.", max_tokens=60, cancel_on_exit=False) as stream:
            first = await anext(stream)
            print(f"{first.number}: {first.text}")
        async with pgnexus.open(nexus=False) as other:
            async for chunk in other.resume(stream.request_id, after=first.number):
                print("what was printed is void" if chunk.discard else f"{chunk.number}: {chunk.text}")
        result = await llm.wait(stream.request_id)
    print(f"stored: {result.text}")


asyncio.run(main())
