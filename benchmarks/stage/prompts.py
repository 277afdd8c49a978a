"""Texts of a given size that compress no better than prose does."""

from __future__ import annotations

import random
from functools import cache

SIZE = 1000  # bytes of a prompt


@cache
def _text() -> str:
    dice = random.Random(7)
    syllables = ["".join(dice.choices("aeinorstlcdumpgbfhvykwz", k=dice.randint(2, 4))) for _ in range(400)]
    words = ["".join(dice.choices(syllables, k=dice.randint(1, 3))) for _ in range(5000)]
    return " ".join(dice.choices(words, k=200_000))


def prompt(number: int, size: int = SIZE) -> str:
    """The prompt of that number; those that follow one another share nothing."""
    start = number * size % (len(_text()) - size)
    return _text()[start : start + size]
