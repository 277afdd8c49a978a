"""Nexus side, the word of everything from the choice of a model to its books: who may serve a request."""

from __future__ import annotations

from typing import NamedTuple


class Candidate(NamedTuple):
    """A model at a provider that may serve a request."""

    provider: str
    model: str

    @classmethod
    def named(cls, ref: str) -> Candidate:
        """From "provider/model"; the model's own name may have slashes, too.

        >>> Candidate.named("groq/openai/gpt-oss-20b").model
        'openai/gpt-oss-20b'
        """
        return cls(*ref.split("/", 1))

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"
