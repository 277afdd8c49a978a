"""A flow that settings can name."""

from pgnexus.flow.graph import Flow

flow = Flow("greeting")


@flow.step
async def hello(input: str) -> str:
    return f"Hello {input}"
