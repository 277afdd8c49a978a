"""Nexus side, a streamed answer of the responses API: deltas out of its events, and the whole from its last one."""

from __future__ import annotations

from typing import Any, Final

from pgnexus import storable
from pgnexus.errors import BadAnswer
from pgnexus.providers.openai.stream import AnswerStream, Refuse, Text
from pgnexus.providers.provider import OnDelta

_LAST: Final = ("response.completed", "response.incomplete")
_SAID: Final = ("response.output_text.delta", "response.refusal.delta")
_THOUGHT: Final = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")


class ResponsesStream(AnswerStream):
    """A streamed answer of the responses API."""

    def __init__(self, where: str, limit: int, on_delta: OnDelta, refuse: Refuse) -> None:
        super().__init__(where, limit, on_delta, refuse)
        self._text = Text()
        self._reasoning = Text()
        self._thought: tuple[Any, ...] | None = None
        self._calls: dict[Any, tuple[int, Text]] = {}
        self._items: list[Any] = []
        self._answer: dict[str, Any] | None = None

    def _event(self, body: dict[str, Any], raw: bytes) -> None:
        kind = body.get("type")
        delta = body.get("delta")
        if isinstance(body.get("response"), dict):
            self._count(body["response"])
        if kind in _SAID and isinstance(delta, str):
            self._keep(len(delta))
            self._tell(self._text.add(delta), "", [])
        elif kind in _THOUGHT and isinstance(delta, str):
            self._think(body, delta)
        elif kind == "response.function_call_arguments.delta" and isinstance(delta, str):
            self._arguments(body.get("output_index"), delta)
        elif kind == "response.output_item.added" and isinstance(body.get("item"), dict):
            self._begin(body.get("output_index"), body["item"])
        elif kind == "response.output_item.done":
            self._keep(len(raw))
            self._items.append(body.get("item"))
        elif kind in _LAST or kind == "response.failed":
            self._end(kind, body.get("response"), raw)

    def _think(self, body: dict[str, Any], delta: str) -> None:
        place = tuple(body.get(name) for name in ("output_index", "summary_index", "content_index"))
        if self._thought is not None and place != self._thought:
            delta = f"\n\n{delta}"  # as between the parts of an answer that was not streamed
        self._thought = place
        self._keep(len(delta))
        self._tell("", self._reasoning.add(delta), [])

    def _begin(self, index: Any, item: dict[str, Any]) -> None:
        if item.get("type") != "function_call":
            return
        number, arguments = self._call(index)
        given = item.get("arguments")
        told = {"id": item.get("call_id"), "type": "function"}
        function = {
            "name": item.get("name"),
            "arguments": arguments.add(given if isinstance(given, str) else ""),
        }
        self._tell("", "", [storable.clean({"index": number, **told, "function": function})[0]])

    def _arguments(self, index: Any, delta: str) -> None:
        number, arguments = self._call(index)
        self._keep(len(delta))
        self._tell("", "", [{"index": number, "function": {"arguments": arguments.add(delta)}}])

    def _call(self, index: Any) -> tuple[int, Text]:
        return self._calls.setdefault(index if isinstance(index, int) else None, (len(self._calls), Text()))

    def _end(self, kind: str, answer: Any, raw: bytes) -> None:
        if not isinstance(answer, dict):
            raise BadAnswer(f"{self._where}: the stream's last event brings no answer")
        if kind == "response.failed":
            raise self._refuse(answer, raw)
        self._answer = answer
        self.ended = True

    def _whole(self) -> Any:
        if self._answer is None:
            raise BadAnswer(f"{self._where}: the stream ended before the answer did")
        if not self._answer.get("output") and self._items:  # some leave out what they have told already
            return {**self._answer, "output": self._items}
        return self._answer
