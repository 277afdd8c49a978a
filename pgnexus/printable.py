"""Under every log line and terminal: foreign words with line breaks and escape codes in them do nothing there."""

from __future__ import annotations

from typing import Final

_C0: Final = {code: chr(0x2400 + code) for code in range(32)} | {127: "\u2421"}
_C1: Final = dict.fromkeys(range(128, 160), "\ufffd")
_TURNS: Final = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
_LINES: Final = _C0 | _C1 | _TURNS
_TEXTS: Final = {code: shown for code, shown in (_C0 | _C1).items() if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """``text`` with control characters as the signs that stand for them; lines and tabs stay.

    >>> visible("a\\x1b[31m\\n")
    'a␛[31m\\n'
    """
    return text if text.isprintable() else text.translate(_TEXTS)


def one_line(words: object) -> str:
    """What an error or anybody else says, in one line in which nothing hides.

    >>> one_line("no\\n  CRITICAL all is lost\\x1b[2J")
    'no CRITICAL all is lost␛[2J'
    """
    text = str(words)
    return text if text.isprintable() else " ".join(text.split()).translate(_LINES)
