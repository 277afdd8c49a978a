"""Flows that the tests of `pgnexus flow` name as tests.cli.flows:NAME."""

from __future__ import annotations

from typing import Any

from pgnexus import Flow, StepFailed

words = Flow("words", base_delay=0)


@words.step
def split(input: str) -> list[str]:
    """Takes a text apart."""
    return input.split()


@words.map(over=split, max_attempts=5)
def measure(word: str) -> int:
    return len(word)


@words.step(only_if={"split": ["loud"]})
def shout(split: list[str]) -> str:
    return " ".join(split).upper()


@words.step
def total(measure: list[int], shout: str | None = None) -> dict[str, Any]:
    return {"letters": sum(measure), "loud": shout}


asked = Flow("asked")


@asked.llm(complexity="simple")
def answer(input: str) -> str:
    return input


approved = Flow("approved")


@approved.step
def draft(input: object) -> str:
    return "a draft"


approval = approved.wait("approval", timeout=3600, depends_on=draft)


@approved.step
def publish(draft: str, approval: Any) -> list[Any]:
    return [draft, approval]


broken = Flow("broken", base_delay=0)


@broken.step
def before(input: object) -> int:
    return 1


@broken.step
def breaks(before: int) -> int:
    raise StepFailed("the disk is on fire")


each = Flow("each")


@each.map
def double(number: int) -> int:
    return 2 * number
