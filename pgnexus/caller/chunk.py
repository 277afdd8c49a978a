"""After T2, before T4: pieces of an answer as a reader gets them, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pgnexus.messages import LLMResult

# The chunks that we add are numbered so far past the last one that was read: others may yet be stored, with the answer.
_BEYOND = 1000


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer: of its text, of its reasoning, or of its tool calls.

    With ``discard`` it says only that everything before it is void: the call that told it broke off. ``number`` counts
    up and is where `LLMService.resume` goes on after. ``tool_calls`` have the form of chat completions' streams: each
    names its ``index``, and ``function.arguments`` is the next piece of JSON text.
    """

    number: int
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    discard: bool = False


class StoredChunk(NamedTuple):
    """A chunk as it is read from the database."""

    number: int
    discard: bool = False
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] | None = None


class Assembly:
    """Stored chunks, in their order, into what a reader gets who has had those up to ``after`` before.

    It sees all chunks from the first, also those that the reader has had: only then can it tell what the reader
    knows. When some are missing the reader is told to discard, and gets the whole from the stored answer.

    >>> assembly = Assembly(after=1)
    >>> assembly.take(StoredChunk(1, text="Par"))
    >>> assembly.take(StoredChunk(2, text="is")).text
    'is'
    """

    def __init__(self, after: int = 0) -> None:
        self._after = after
        self._last = 0
        self._texts: list[str] = []
        self._reasons = False
        self._arguments: dict[int, str] = {}
        self._broken = False
        self._told = after > 0  # the reader has something to discard

    def take(self, row: StoredChunk) -> Chunk | None:
        """What the reader gets of the next chunk, if anything."""
        expected, self._last = self._last + 1, row.number
        if row.discard:
            self._clear()
            self._broken = False
            return self._discard()
        if row.number != expected and not self._broken:
            self._clear()
            self._broken = True
            return self._discard()
        if self._broken:
            return None
        calls = _calls(row)
        self._texts.append(row.text)
        self._reasons = self._reasons or bool(row.reasoning)
        for call in calls:
            index = call.get("index", 0)
            self._arguments[index] = self._arguments.get(index, "") + _arguments(call)
        if row.number <= self._after:
            return None
        self._told = True
        return Chunk(row.number, row.text, row.reasoning, calls)

    def finish(self, result: LLMResult) -> list[Chunk]:
        """What the reader still needs to have the stored answer, whatever is missing of its chunks."""
        knows = not self._broken and self._last >= self._after
        text, whole = "".join(self._texts), result.text
        calls = tuple({"index": index, **call} for index, call in enumerate(result.tool_calls))
        reasoning = (result.message or {}).get("reasoning_content")
        reasoning = reasoning if isinstance(reasoning, str) else ""
        number = max(self._last, self._after) + _BEYOND
        streamed = sorted(arguments or "{}" for arguments in self._arguments.values())
        has_calls = streamed == sorted(_arguments(call) or "{}" for call in calls)
        if not knows or not whole.startswith(text) or not (has_calls or not self._arguments):
            discard = [Chunk(number, discard=True)] if self._told else []
            return [*discard, Chunk(number + 1, whole, reasoning, calls)]
        said = bool(text or self._reasons or self._arguments)
        rest = Chunk(number, whole[len(text) :], "" if said else reasoning, () if has_calls else calls)
        return [rest] if rest.text or rest.reasoning or rest.tool_calls else []

    def _clear(self) -> None:
        self._texts.clear()
        self._arguments.clear()
        self._reasons = False

    def _discard(self) -> Chunk | None:
        if self._last <= self._after or not self._told:
            return None
        self._told = False
        return Chunk(self._last, discard=True)


def _calls(row: StoredChunk) -> tuple[dict[str, Any], ...]:
    """Its pieces of tool calls, as far as they are some: another program may have written them."""
    calls = row.tool_calls if isinstance(row.tool_calls, list) else []
    return tuple(call for call in calls if isinstance(call, dict) and isinstance(call.get("index", 0), int))


def _arguments(call: dict[str, Any]) -> str:
    """The arguments of a tool call, or a piece of them."""
    function = call.get("function")
    return str(function.get("arguments") or "") if isinstance(function, dict) else ""
