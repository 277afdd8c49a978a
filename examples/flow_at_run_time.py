"""Run a flow that nobody programmed: python examples/flow_at_run_time.py

A model is given what it may use, as a JSON schema, and answers with a description. What is wrong with it goes back to
the model, all at once, until it is a flow. Here the two answers are written down, so that small models can play along.
"""

import asyncio
import json

import pgnexus

actions = pgnexus.Actions()


@actions.add
def find_reviews(product: str) -> list[str]:
    """Find what customers wrote about a product."""
    return [
        f"The {product} is bright, and I can read by it all night.",
        f"My {product} broke on the first day.",
    ]


@actions.add
def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


builder = pgnexus.FlowBuilder(actions, max_steps=10)

FIRST_ANSWER = """
{"name": "opinions", "steps": [
  {"slug": "reviews", "use": "search_reviews", "with": {"product": "{input.product}"}},
  {"slug": "mood", "over": "reviews", "prompt": "Is this review good or bad? One word: {element}"},
  {"slug": "verdict", "prompt": "What do these say of a product? {moods}"}]}
"""
SECOND_ANSWER = """
{"name": "opinions", "steps": [
  {"slug": "reviews", "use": "find_reviews", "with": {"product": "{input.product}"}},
  {"slug": "mood", "over": "reviews", "prompt": "Is this review good or bad? One word: {element}", "max_tokens": 10},
  {"slug": "verdict", "prompt": "What do these say of a product? {mood}", "complexity": "simple", "max_tokens": 30},
  {"slug": "words", "use": "count_words", "with": {"text": "{verdict}"}}]}
"""


def ask_a_model(wish: str, schema: dict[str, object], faults: str | None) -> str:
    """Stands for a call such as `llm.call_with_system("complex", json.dumps(schema), wish)`."""
    return FIRST_ANSWER if faults is None else SECOND_ANSWER


def flow_for(wish: str) -> pgnexus.BuiltFlow:
    """The flow that a model describes, after as many answers as it takes, three at most."""
    faults = None
    for _ in range(3):
        answer = ask_a_model(wish, builder.json_schema(), faults)
        try:
            return builder.build(answer)
        except pgnexus.InvalidFlow as error:
            faults = str(error)
            print(faults)
    raise SystemExit("no flow came of it")


async def main() -> None:
    flow = flow_for("What do customers think of our products, and in how many words can you say it?")
    async with pgnexus.executor(
        builder=builder
    ) as executor:  # runs all flows of these actions, whoever built them
        run = await executor.start(flow, {"product": "lamp"})
        print(f"words: {await run.result(timeout=300)}")
        for step in (await run.status()).steps:
            print(f"{step.slug}: {step.status}, {step.tasks_total} task(s)")
    print(f"actions a description may use: {json.dumps(builder.actions.handlers)}")


asyncio.run(main())
