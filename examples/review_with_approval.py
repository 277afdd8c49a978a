"""A model writes, a person decides, and only then it is published: python examples/review_with_approval.py [TOPIC]

The decision is asked for here. Without an answer (Ctrl-D) the program ends, and the run waits, for two days and without
any process: python examples/review_with_approval.py RUN_ID yes decides later. That is the flow's `signal`.
"""

import asyncio
import sys
from datetime import timedelta
from uuid import UUID

import pgnexus

TABLE = "create table if not exists published (run_id uuid primary key, text text not null)"

letter = pgnexus.Flow("letter")


@letter.llm(complexity="simple", max_tokens=60)
def draft(input: str) -> str:
    """Have a model write."""
    return f"Write one sentence about {input}."


letter.wait("approval", depends_on=draft, timeout=timedelta(days=2), returns=bool)


@letter.step(only_if={"approval": True}, transactional=True)
async def publish(draft: str, approval: bool, ctx: pgnexus.Context) -> str:
    """Published and completed in one transaction: never twice, however often this is tried."""
    await ctx.connection.execute(TABLE)
    await ctx.connection.execute("insert into published values (%s, %s)", [ctx.run_id, draft])
    return draft


async def waiting(run: pgnexus.RunHandle) -> str | None:
    """What there is to decide on, as soon as the run waits for it; None when it ended before."""
    text = None
    async for event in run.watch():
        if event.event_type == "step:completed" and event.step == "draft":
            text = str(event.payload["output"])
        if event.event_type == "step:started" and event.step == "approval":
            break
    while (status := await run.status()).status == "started":
        if status.step("approval").waits_for == "signal":
            return text
        await asyncio.sleep(0.1)
    return None


async def decide(run: pgnexus.RunHandle, answer: str) -> None:
    """Bring the run what it waits for, and tell what came of it."""
    try:
        await run.signal("approval", answer.strip().lower() in ("y", "yes"))
    except pgnexus.NotWaiting as error:  # decided before, or two days are over
        sys.exit(str(error))
    text = await run.result(timeout=60)
    print("not published" if text is None else f"published: {text.strip()}")


async def main(arguments: list[str]) -> None:
    async with pgnexus.executor(letter) as executor:
        if len(arguments) == 2:
            await decide(executor.handle(UUID(arguments[0])), arguments[1])
            return
        run = await executor.start(letter, arguments[0] if arguments else "the sea")
        text = await waiting(run)
        if text is None:
            sys.exit(f"nothing to decide on: {await run.status()}")
        print(f"{text.strip()}\n\nrun {run.run_id}", flush=True)
        print("Publish it? [yes/no] ", end="", file=sys.stderr, flush=True)
        if answer := await asyncio.to_thread(sys.stdin.readline):
            await decide(run, answer)


asyncio.run(main(sys.argv[1:]))
