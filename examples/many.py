"""Store many requests in one round trip, and take the results as they come: python examples/many.py

Run it twice: the idempotency keys make the second run find the first one's results, and ask nothing again.
"""

import asyncio

import pgnexus

REVIEWS = {
    "r-1": "The battery lasts for days and the screen is bright.",
    "r-2": "It arrived broken, and nobody answers my letters.",
    "r-3": "It does what it says.",
}


async def main() -> None:
    async with pgnexus.open() as llm:
        handles = await llm.enqueue_many(
            [
                {
                    "messages": f"Is this review good or bad? One word.\n\n{text}",
                    "idempotency_key": f"examples/many/{name}",
                    "metadata": {"review": name},
                }
                for name, text in REVIEWS.items()
            ],
            task_type="classifier",  # simple by its task type
            max_tokens=10,
            priority="batch",  # never in the way of somebody who waits at a screen
        )
        names = dict(zip((handle.request_id for handle in handles), REVIEWS, strict=True))
        for result in asyncio.as_completed([handle.result(timeout=300) for handle in handles]):
            try:
                answer = await result
            except pgnexus.RequestError as error:
                print(f"{names[error.request_id]}: {error}")
            else:
                print(f"{names[answer.request_id]}: {answer.text.strip()}")
        print(f"asked now: {sum(handle.created for handle in handles)} of {len(handles)}")


asyncio.run(main())
