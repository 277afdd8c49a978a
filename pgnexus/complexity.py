"""Both sides, before a model is chosen: how hard a task is, by its type or by a look at its messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

Complexity = Literal["simple", "medium", "complex"]
AskedComplexity = Literal["simple", "medium", "complex", "auto"]

TASK_COMPLEXITY: Final[dict[str, Complexity]] = {
    "classifier": "simple",
    "parser": "simple",
    "simple_chat": "simple",
    "coder": "medium",
    "decomposition": "medium",
    "planning": "medium",
    "chat": "medium",
    "architect": "complex",
    "code_generation": "complex",
    "refactoring": "complex",
    "qa": "complex",
}

_LOOKED_AT: Final = 8_000  # characters, half of them from the beginning and half from the end

# Beginnings of words, and phrases, of English and a few of German.
_HARD: Final = (
    "architect", "architekt", "design", "redesign", "entwirf", "refactor", "migrat", "optimiz", "optimis",
    "debug", "diagnos", "prove", "proof", "beweis", "derivation", "theorem", "strateg", "deadlock",
    "concurren", "distributed", "verteilte", "scalab", "algorithm", "implement", "evaluat", "critique",
    "investigat",
)  # fmt: skip
_HARD_PHRASES: Final = ("trade-off", "tradeoff", "root cause", "race condition", "step by step", "in depth")
_WORK: Final = (
    "write", "schreib", "explain", "erklär", "compar", "vergleich", "plan", "review", "fix", "draft",
    "analy", "describ", "solve", "calculat", "rewrit",
)  # fmt: skip
_EASY: Final = (
    "classif", "klassifizier", "categori", "extract", "translat", "übersetz", "summari", "label",
    "sentiment", "spam", "rephras", "proofread", "convert", "capitali", "spell", "hello", "thank",
)  # fmt: skip
_EASY_PHRASES: Final = (
    "yes or no", "true or false", "one word", "what is the", "who is", "who was", "who wrote", "how many",
    "how old", "how far", "when did", "when was", "where is",
)  # fmt: skip
_CONSTRAINTS: Final = frozenset(
    ("must", "should", "shall", "least", "most", "without", "except", "unless", "ensure", "exactly", "never")
)
_WORD: Final = re.compile(r"[^\W\d_]+")
_BULLET: Final = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]", re.MULTILINE)
_CODE: Final = re.compile(
    r"```|^[ \t]*(?:def|class|import|from|func|fn|public|private|#include|select|create)\b[^\n]*[({:;]"
    r"|^Traceback |[{;][ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


class Said(Protocol):
    """What the estimate needs of a message."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str | list[dict[str, Any]] | None: ...


def complexity_for(task_type: str | None) -> Complexity:
    """The complexity of a task type; ``medium`` for unknown ones.

    >>> complexity_for("architect"), complexity_for("poetry")
    ('complex', 'medium')
    """
    return TASK_COMPLEXITY.get(task_type, "medium") if isinstance(task_type, str) else "medium"


def resolve_complexity(
    asked: str | None, task_type: str | None, messages: Sequence[Said], *, tools: bool = False
) -> Complexity:
    """The complexity in force: the one that is asked for; for ``auto`` that of a known task type, else a look at the
    messages; for none that of the task type.
    """
    if asked == "auto" and task_type not in TASK_COMPLEXITY:
        return estimate_complexity(messages, tools=tools)
    return complexity_for(task_type) if asked is None or asked == "auto" else _named(asked)


def _named(word: str) -> Complexity:
    for complexity in ("simple", "medium", "complex"):
        if word == complexity:
            return complexity
    raise ValueError(f"{word!r} is no complexity")


def estimate_complexity(messages: Sequence[Said], *, tools: bool = False) -> Complexity:
    """How hard the messages look, without asking a model: ``complex`` from 4 points, ``simple`` below 1.

    Words of design, proof and repair count 2 each, up to three of them; a word of other work 1; words of classifying,
    extracting and translating -1 each, up to two. Code counts 1, each question after the first 0.5 (up to three),
    each constraint or item of a list 0.5 (up to five), images 1, tools 1, more than three turns 0.5; a text of more
    than 600 characters 0.5, of more than 4,000 2, of more than 24,000 3. At most 8,000 characters are looked at.

    >>> from pgnexus.messages import Message
    >>> estimate_complexity([Message(role="user", content="Translate to French: good morning")])
    'simple'
    """
    text, length, images = _texts(messages)
    points = _points_of_words(text.lower()) + _points_of_form(text) + _points_of_length(length)
    points += 1.0 if images else 0.0
    points += 1.0 if tools or any(message.role == "tool" for message in messages) else 0.0
    points += 0.5 if sum(message.role == "user" for message in messages) > 3 else 0.0
    return "complex" if points >= 4 else "medium" if points >= 1 else "simple"


def _points_of_words(text: str) -> float:
    said: list[str] = _WORD.findall(text)
    words = set(said)
    hard = sum(word.startswith(_HARD) for word in words) + sum(phrase in text for phrase in _HARD_PHRASES)
    easy = sum(word.startswith(_EASY) for word in words) + sum(phrase in text for phrase in _EASY_PHRASES)
    work = any(word.startswith(_WORK) for word in words)
    constraints = sum(word in _CONSTRAINTS for word in said) + len(_BULLET.findall(text))
    return 2.0 * min(hard, 3) + 1.0 * work - 1.0 * min(easy, 2) + 0.5 * min(constraints, 5)


def _points_of_form(text: str) -> float:
    questions = text.count("?")
    return (1.0 if _CODE.search(text) else 0.0) + 0.5 * min(max(questions - 1, 0), 3)


def _points_of_length(characters: int) -> float:
    """A long text to work on is hardly ever as easy as a short one."""
    return 3.0 if characters > 24_000 else 2.0 if characters > 4_000 else 0.5 if characters > 600 else 0.0


def _texts(messages: Sequence[Said]) -> tuple[str, int, bool]:
    """What is asked (of the user and the system), cut in the middle; its whole length; whether images are shown."""
    pieces: list[str] = []
    length, images = 0, False
    for message in messages:
        for kind, piece in _parts(message.content):
            images = images or kind in ("image_url", "input_image")
            length += len(piece)
            if message.role not in ("assistant", "tool"):
                pieces.append(piece)
    return _ends(pieces), length, images


def _parts(content: str | list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    if isinstance(content, str):
        return [("text", content)]
    return [
        (str(part.get("type")), text if isinstance(text := part.get("text"), str) else "")
        for part in content or ()
    ]


def _ends(pieces: Sequence[str]) -> str:
    """The pieces as one text, the middle of a long one left out."""
    half = _LOOKED_AT // 2
    head, room = "", half
    for place, piece in enumerate(pieces):
        if len(piece) > room:
            return head + piece[:room] + "\n" + _tail((piece[room:], *pieces[place + 1 :]), half)
        head += piece + "\n"
        room -= len(piece)
    return head


def _tail(pieces: Sequence[str], most: int) -> str:
    taken: list[str] = []
    for piece in reversed(pieces):
        if most <= 0:
            break
        taken.append(piece[-most:])
        most -= len(piece)
    return "\n".join(reversed(taken))
