"""Nexus side, the last step before the network: what every vendor's wire takes and gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pgnexus.messages import LLMRequest, Usage


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer in the form of OpenAI's chat completions, storable as it is.

    ``text`` is None when the answer is only tool calls, ``model`` is the name that the vendor gave, and
    ``mended`` says that characters or numbers which cannot be stored were replaced.
    """

    message: dict[str, Any]
    text: str | None
    model: str
    finish_reason: str
    usage: Usage
    mended: bool = False


class Provider(Protocol):
    """One vendor's wire."""

    @property
    def name(self) -> str: ...

    async def complete(self, request: LLMRequest, model: str, *, timeout: float) -> Completion:
        """Ask ``model`` once, within ``timeout`` seconds; raises a `ProviderError`.

        Cancelling the call closes its connection to the vendor.
        """
        ...

    async def close(self) -> None:
        """Give back connections and processes; a provider that was never used has none."""
        ...
