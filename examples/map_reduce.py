"""Sum up documents, all at the same time, and then the summaries: python examples/map_reduce.py [FILE...]

The run is stored: kill this program half-way, and the next one that runs the flow goes on where it was.
"""

import asyncio
import sys
from pathlib import Path

from pydantic import BaseModel

import pgnexus

DOCUMENTS = {
    "tides.txt": "The moon pulls on the sea. Twice a day the water rises, and twice a day it falls.",
    "bread.txt": "Flour, water, salt and time. Yeast eats sugar and breathes out gas, which lifts the dough.",
    "ants.txt": "An ant that finds food leaves a scent on its way home. Others follow it and make it stronger.",
}
PART = 2000  # characters that one model is asked to read

digest = pgnexus.Flow("digest")


class Document(BaseModel):
    """A text, or a piece of one."""

    name: str
    text: str


@digest.step
def parts(input: list[Document]) -> list[Document]:
    """Cut documents to pieces that are short enough for one question."""
    return [
        Document(name=whole.name, text=whole.text[start : start + PART])
        for whole in input
        for start in range(0, len(whole.text), PART)
    ]


@digest.llm(over=parts, task_type="parser", max_tokens=40)
def summary(part: Document) -> str:
    """One question a piece; none of them holds a worker while it is answered."""
    return f"Sum up in one short sentence:\n\n{part.text}"


@digest.step
def notes(parts: list[Document], summary: list[str]) -> str:
    """The answers come in the order of the pieces, whichever was first."""
    return "\n".join(f"{part.name}: {said.strip()}" for part, said in zip(parts, summary, strict=True))


@digest.llm(complexity="simple", max_tokens=60)
def title(notes: str) -> str:
    """One question about all answers."""
    return f"Give a title to a book with these chapters:\n\n{notes}"


@digest.step
def page(notes: str, title: str) -> str:
    """What the run gives."""
    return f"{title.strip()}\n\n{notes}"


def read(paths: list[str]) -> list[Document]:
    texts = {path: Path(path).read_text(encoding="utf-8") for path in paths} or DOCUMENTS
    return [Document(name=name, text=text) for name, text in texts.items()]


async def main(documents: list[Document]) -> None:
    async with pgnexus.executor(digest) as executor:
        run = await executor.start(digest, documents)
        async for event in run.watch():
            if event.event_type == "step:completed":
                print(f"{event.step} is done", file=sys.stderr)
        try:
            print(await run.result())
        except (
            pgnexus.RunFailed
        ) as error:  # stored as well: pgnexus flow run shows it, flow retry takes it up
            sys.exit(str(error))


asyncio.run(main(read(sys.argv[1:])))
