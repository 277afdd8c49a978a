"""Nexus side, a streamed answer of OpenAI's wire: its events go in, deltas come out as they come, then the whole.

The whole has the form of an answer that was not streamed, so that both are read by the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any, Final

from pydantic_core import to_json

from pgnexus import storable
from pgnexus.errors import AnswerTooLong, BadAnswer, ProviderError
from pgnexus.providers.openai.sse import Event, EventParser
from pgnexus.providers.provider import Delta, OnDelta

_DONE: Final = b"[DONE]"
_REASONING: Final = ("reasoning_content", "reasoning")
# Of the fields that no code here knows, those that come in pieces; others are told whole, some again and again.
_PIECES: Final = frozenset({"text", "summary", "thinking", "transcript", "data"})

Refuse = Callable[[Any, bytes], ProviderError]


class AnswerStream:
    """What both APIs have in common. ``refuse`` makes the error of a body, and the bytes it came in, that holds one."""

    def __init__(self, where: str, limit: int, on_delta: OnDelta, refuse: Refuse) -> None:
        self._where = where
        self._limit = limit
        self._on_delta = on_delta
        self._refuse = refuse
        self._parser = EventParser()
        self._kept = 0
        self.usage: Any = None
        """What the vendor counted, as it says it; None as long as it has said nothing."""
        self.ended = False
        """Whether the vendor said that nothing more will come."""
        self.told = False
        """Whether ``on_delta`` was called."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; raises the vendor's error, `BadAnswer`, `AnswerTooLong`, or what ``on_delta`` does."""
        self._take(self._parser.feed(chunk))
        self._check(self._parser.held)

    def finish(self) -> Any:
        """The whole answer, after the last bytes."""
        self._take(self._parser.finish())
        return self._whole()

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if self.ended:
                return
            if event.data.strip() == _DONE:
                self.ended = True
                return
            try:
                body = storable.parse(event.data)
            except ValueError:
                raise BadAnswer(f"{self._where}: an event of the stream is not JSON") from None
            if not isinstance(body, dict):
                raise BadAnswer(f"{self._where}: an event of the stream is no object")
            if event.name == b"error" or body.get("error"):
                self._count(body)
                raise self._refuse(body, event.data)
            self._event(body, event.data)

    def _event(self, body: dict[str, Any], raw: bytes) -> None:
        raise NotImplementedError

    def _whole(self) -> Any:
        raise NotImplementedError

    def _count(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("usage"), dict):
            self.usage = body["usage"]

    def _tell(self, text: str, reasoning: str, calls: list[dict[str, Any]]) -> None:
        if text or reasoning or calls:
            self.told = True
            self._on_delta(Delta(text, reasoning, tuple(calls)))

    def _keep(self, size: int) -> None:
        self._kept += size
        self._check(0)

    def _check(self, held: int) -> None:
        """A vendor gone mad must not fill our memory; what its stream repeats in every event does not count."""
        if self._kept + held > self._limit:
            raise AnswerTooLong(
                f"{self._where}: an answer of more than {self._limit} bytes (max_message_bytes)"
            )


class Text:
    """A text that comes in pieces; a surrogate pair cut in two is one character again."""

    def __init__(self) -> None:
        self._all = StringIO()
        self._half = ""

    def add(self, piece: str) -> str:
        """Keep ``piece``; what is to be told of it, storable."""
        self._all.write(piece)
        if piece.isascii() and not self._half:
            return piece if "\0" not in piece else _storable(piece)
        piece = self._half + piece
        self._half = piece[-1] if piece and "\ud800" <= piece[-1] <= "\udbff" else ""
        return _storable(_paired(piece.removesuffix(self._half) if self._half else piece))

    def __str__(self) -> str:
        return _paired(self._all.getvalue())


def _paired(text: str) -> str:
    """Halves of a character that stand side by side as the character; other halves as they are."""
    if text.isascii() or not any("\ud800" <= letter <= "\udbff" for letter in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _storable(text: str) -> str:
    return str(storable.clean(text)[0])


class ChatStream(AnswerStream):
    """A streamed chat completion, of its first choice."""

    def __init__(self, where: str, limit: int, on_delta: OnDelta, refuse: Refuse) -> None:
        super().__init__(where, limit, on_delta, refuse)
        self._model: Any = None
        self._reason: Any = None
        self._texts: dict[str, Text] = {}
        self._thinks_as = ""  # some send the same words under two names
        self._parts: list[Any] = []  # content that is no text, in order with the text around it
        self._calls = _Calls()
        self._rest: dict[str, list[Any]] = {}

    def _event(self, body: dict[str, Any], raw: bytes) -> None:
        self._model = self._model or body.get("model")
        self._count(body)
        if isinstance(body.get("x_groq"), dict):
            self._count(body["x_groq"])
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or choice.get("index") not in (0, None):
                continue
            self._count(choice)
            self._reason = choice.get("finish_reason") or self._reason
            if isinstance(choice.get("delta"), dict):
                self._delta(choice["delta"], len(raw))

    def _delta(self, delta: dict[str, Any], size: int) -> None:
        text, reasoning, calls = "", "", []
        for key, value in delta.items():
            if value is None or key == "role":
                continue
            if key in ("content", "refusal") and isinstance(value, str):
                text += self._add(key, value)
            elif key in _REASONING and isinstance(value, str):
                told = self._add(key, value)
                self._thinks_as = self._thinks_as or key
                reasoning += told if key == self._thinks_as else ""
            elif key == "content" and isinstance(value, list):
                text, reasoning = self._content(value, text, reasoning, size)
            elif key == "tool_calls" and isinstance(value, list):
                calls = [
                    told for call in value if isinstance(call, dict) for told in (self._call(call, size),)
                ]
            else:
                self._keep(size)
                self._rest.setdefault(key, []).append(value)
        self._tell(text, reasoning, calls)

    def _add(self, key: str, piece: str) -> str:
        self._keep(len(piece) if piece.isascii() else len(piece.encode(errors="surrogatepass")))
        if key not in self._texts:
            self._texts[key] = Text()
        return self._texts[key].add(piece)

    def _content(self, parts: list[Any], text: str, reasoning: str, size: int) -> tuple[str, str]:
        """Parts instead of a text, as Mistral's thinking models send them."""
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                text += self._add("content", part["text"])
            elif kind == "thinking":
                reasoning += self._add("reasoning_content", thinking(part))
            else:
                self._keep(size)
                self._parts.append(part)
        return text, reasoning

    def _call(self, call: dict[str, Any], size: int) -> dict[str, Any]:
        told, is_new = self._calls.add(call)
        self._keep(size if is_new else len(told["function"]["arguments"]))
        return told

    def _whole(self) -> Any:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message |= {key: folded(values, key) for key, values in self._rest.items()}
        message |= {key: str(text) for key, text in self._texts.items()}
        calls = self._calls.whole()
        if calls:
            message["tool_calls"] = calls
            message["content"] = message["content"] or None
        if self._parts:
            said = [{"type": "text", "text": message["content"]}] if message["content"] else []
            message["content"] = [*said, *self._parts]
        choice = {"index": 0, "message": message, "finish_reason": self._reason}
        return {"model": self._model, "choices": [choice], "usage": self.usage}


class _Calls:
    """Tool calls that come in pieces; what comes before the arguments is told whole."""

    def __init__(self) -> None:
        self._heads: list[list[dict[str, Any]]] = []
        self._arguments: list[Text] = []
        self._by_index: dict[Any, int] = {}

    def add(self, call: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Keep a piece; what is to be told of it, and whether it said more than arguments."""
        given = call.get("function")
        function: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
        arguments = function.pop("arguments", None)
        if arguments is not None and not isinstance(arguments, str):
            arguments = to_json(storable.clean(arguments)[0]).decode()
        number = self._number(call, function)
        head = {key: value for key, value in call.items() if key not in ("index", "function")}
        head["function"] = function
        is_new = (
            any(value for value in (*head.values(), *function.values())) and head not in self._heads[number]
        )
        if is_new:
            self._heads[number].append(head)
        piece = self._arguments[number].add(arguments or "")
        told: dict[str, Any] = {"index": number, "function": {"arguments": piece}}
        if is_new:
            told |= {key: head[key] for key in ("id", "type") if head.get(key)}
            told["function"] |= {"name": function["name"]} if function.get("name") else {}
        return storable.clean(told)[0], is_new

    def _number(self, call: dict[str, Any], function: dict[str, Any]) -> int:
        """Which call it belongs to: some vendors leave ``index`` out, some give 0 to all."""
        index, call_id = call.get("index"), call.get("id")
        index = index if isinstance(index, int) else None
        number = self._by_index.get(index)
        begins = bool(call_id) and bool(function.get("name"))
        if number is None or (begins and self._id(number) not in (None, call_id)):
            number = len(self._heads)
            self._heads.append([])
            self._arguments.append(Text())
            self._by_index[index] = number
        return number

    def _id(self, number: int) -> Any:
        return next((head["id"] for head in self._heads[number] if head.get("id")), None)

    def whole(self) -> list[dict[str, Any]]:
        calls = [folded(heads, "") if heads else {"function": {}} for heads in self._heads]
        for call, arguments in zip(calls, self._arguments, strict=True):
            call["function"]["arguments"] = str(arguments)
        return calls


def folded(values: list[Any], key: str, depth: int = 1) -> Any:
    """One value of all that a stream said of one field: pieces joined, items of a list by their index."""
    if len(values) == 1 or depth > storable.MAX_DEPTH:
        return values[0]
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {
            name: folded([value[name] for value in values if name in value], name, depth + 1)
            for name in names
        }
    if all(isinstance(value, list) for value in values):
        items: dict[Any, list[Any]] = {}
        for item in (item for value in values for item in value):
            index = item.get("index") if isinstance(item, dict) else None
            items.setdefault(index if isinstance(index, int) else object(), []).append(item)
        return [folded(pieces, "", depth + 1) for pieces in items.values()]
    if key in _PIECES and all(isinstance(value, str) for value in values):
        return "".join(values)
    return next((value for value in values if value), values[-1])


def thinking(part: dict[str, Any]) -> str:
    """The text of a part of type thinking: a text, or parts of text."""
    inner = part.get("thinking")
    if isinstance(inner, list):
        texts = [piece.get("text") for piece in inner if isinstance(piece, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return inner if isinstance(inner, str) else ""
