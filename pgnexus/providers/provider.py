"""Nexus side, the last step before the network: what every vendor's wire takes and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pgnexus.errors import ProviderError
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

    def as_delta(self) -> Delta:
        """The whole answer as one piece, for who streams from a vendor that does not."""
        calls = self.message.get("tool_calls") or ()
        told = tuple({"index": index, **call} for index, call in enumerate(calls))
        return Delta(self.text or "", self.message.get("reasoning_content") or "", told)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer as it comes: of its text, of its reasoning, or of its tool calls.

    ``tool_calls`` have the form of chat completions' streams: each names its ``index``, and
    ``function.arguments`` is the next piece of JSON text.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()


OnDelta = Callable[[Delta], None]


class Provider(Protocol):
    """One vendor's wire."""

    @property
    def name(self) -> str: ...

    async def complete(
        self, request: LLMRequest, model: str, *, timeout: float, on_delta: OnDelta | None = None
    ) -> Completion:
        """Ask ``model`` once, within ``timeout`` seconds; raises a `ProviderError`.

        With ``on_delta`` the answer is streamed, and each piece told as it comes; the completion is the whole all
        the same, and an answer that breaks off raises. Cancelling the call closes its connection to the vendor.
        """
        ...

    async def close(self) -> None:
        """Give back connections and processes; a provider that was never used has none."""
        ...


def bare(error: ProviderError) -> ProviderError:
    """The error without what it came from, to be raised outside of any ``except``.

    The frames below a wire hold headers and what a vendor answered, which may have the key in it, and some who
    collect tracebacks collect locals, too.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
