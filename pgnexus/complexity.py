"""Both sides, before a model is chosen: how hard a task is, by its type or by a look at its messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

Complexity = Literal["simple", "medium", "complex"]

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

_LOOKED_AT = 20_000  # characters, half of them from the beginning and half from the end
_HARD = re.compile(
    r"\b(?:architect\w*|design\w*|refactor\w*|redesign\w*|migrat\w+|optimi[sz]\w+|debug\w*|diagnos\w+|prove|proof"
    r"|deriv(?:e|ation)|theorem|trade-?offs?|strateg(?:y|ies)|root cause|race condition|deadlock|concurren\w+"
    r"|distributed|scalab\w+|algorithms?|implement\w*|step by step|in depth|evaluate|critique|investigat\w+"
    r"|architektur|entwirf|beweise?)\b",
    re.IGNORECASE,
)
_EASY = re.compile(
    r"\b(?:classif\w+|categori[sz]\w+|extract\w*|translat\w+|summari[sz]e|tl;?dr|label\w*|tag|sentiment|spam"
    r"|yes or no|true or false|one word|rephrase|fix the (?:typos?|spelling|grammar)|proofread|convert|capitali[sz]e"
    r"|sort|list the|what (?:is|are|was|does) the|who (?:is|was|wrote)|when (?:is|was|did)|where (?:is|was)"
    r"|how (?:many|old|far)|spell|hello|hi|thanks|thank you|klassifizier\w*|übersetze?n?|fasse)\b",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|^\s*(?:def|class|import|from|func|fn|public|private|#include|select|create table)\b.*[({:;]"
    r"|^Traceback |[{;]\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_CONSTRAINT = re.compile(
    r"\b(?:must(?: not)?|should|shall|at (?:least|most)|without|except|unless|only if|ensure|exactly|no more than)\b"
    r"|^\s*(?:[-*•]|\d+[.)])\s+\S",
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

    Points are given for words of design, proof and repair, for code, questions and constraints, for length, images,
    tools, and turns of a conversation; words of classifying, extracting and translating take some away. At most
    20,000 characters are looked at.

    >>> from pgnexus.messages import Message
    >>> estimate_complexity([Message(role="user", content="Translate to French: good morning")])
    'simple'
    """
    text, length, images = _texts(messages)
    points = _points_of_words(text) + _points_of_length(length)
    points += 1.0 if images else 0.0
    points += 1.0 if tools or any(message.role == "tool" for message in messages) else 0.0
    points += 0.5 if sum(message.role == "user" for message in messages) > 3 else 0.0
    return "complex" if points >= 4 else "medium" if points >= 1 else "simple"


def _points_of_words(text: str) -> float:
    hard = len({match.lower() for match in _HARD.findall(text)})
    easy = len({match.lower() for match in _EASY.findall(text)})
    questions = text.count("?")
    constraints = len(_CONSTRAINT.findall(text))
    points = 2.0 * min(hard, 3) - 1.0 * min(easy, 2)
    points += 1.0 if _CODE.search(text) else 0.0
    points += 0.5 * min(max(questions - 1, 0), 3)
    return points + 0.5 * min(constraints, 5)


def _points_of_length(characters: int) -> float:
    """A long text to work on is hardly ever as easy as a short one."""
    return 2.0 if characters > 24_000 else 1.0 if characters > 4_000 else 0.5 if characters > 600 else 0.0


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
    half = _LOOKED_AT // 2
    head, tail, taken = [], [], 0
    for piece in pieces:
        if taken >= half:
            break
        head.append(piece[: half - taken])
        taken += len(head[-1])
    whole = "\n".join(head)
    if sum(map(len, pieces)) <= taken:
        return whole
    left, room = [], half
    for piece in reversed(pieces):
        if room <= 0:
            break
        left.append(piece[-room:])
        room -= len(left[-1])
    tail = list(reversed(left))
    return whole + "\n" + "\n".join(tail)
