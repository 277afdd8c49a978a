"""Ask one question and wait for the answer: python examples/ask.py [QUESTION]

Without settings it starts an embedded PostgreSQL and, when no API key is set, a small local model.
"""

import asyncio
import sys

import pgnexus


async def main(question: str) -> None:
    async with pgnexus.open() as llm:
        try:
            result = await llm.call("simple", question, max_tokens=60, timeout=120)
        except pgnexus.RequestError as error:  # stored as well: error.result is its row
            sys.exit(f"no answer: {error}")
        print(result.text)
        cost = "unknown" if result.cost is None else f"${result.cost}"
        print(f"{result.provider}/{result.model}, {result.usage.total_tokens} tokens, cost {cost}")
        print(f"request {result.request_id}, {result.latency_ms} ms")


asyncio.run(main(" ".join(sys.argv[1:]) or "What is the capital of France?"))
