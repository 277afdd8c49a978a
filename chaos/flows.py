"""The flow that callers start: each kind of step, two questions to a model, and a booking that must be there once."""

from __future__ import annotations

from chaos.provider import MOST_TOKENS
from chaos.queries import load
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow

NAME = "chaos_brief"
QUESTIONS = 2

brief = Flow(NAME, max_attempts=10, base_delay=0, timeout=30)


@brief.step
def questions(input: str) -> list[str]:
    return [f"[{input}.{number}] a question" for number in range(QUESTIONS)]


@brief.llm(over=questions, complexity="simple", max_tokens=MOST_TOKENS)
def answer(question: str) -> str:
    return question


@brief.map(over=questions)
async def checked(question: str) -> int:
    return len(question)


@brief.step
def stubborn(input: str, ctx: Context) -> str:
    if ctx.attempt == 1:
        raise ValueError("not at the first attempt")
    return input


@brief.step(transactional=True)
async def booked(answer: list[str], checked: list[int], stubborn: str, ctx: Context) -> list[str]:
    """A row that is there if, and only if, this step is completed."""
    await ctx.connection.execute(load("book"), (ctx.run_id, ctx.attempt))
    return answer
