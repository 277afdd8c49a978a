"""Under every verb: what it prints. Results go to stdout, everything about them to stderr."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic_core import to_json
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

from pgnexus.caller.results import JobResult
from pgnexus.errors import PgnexusError, RequestError, ResultPending, RunError, RunPending, UnknownRequest
from pgnexus.messages import LLMResult
from pgnexus.printable import one_line, visible

_LEAST = Decimal("0.000001")  # dollars; below that money shows no digit

_THEME = Theme(
    {
        "good": "green",
        "bad": "bold red",
        "warn": "yellow",
        "quiet": "dim",
        "key": "cyan",
        "status.success": "green",
        "status.failed": "red",
        "status.timeout": "yellow",
        "status.cancelled": "magenta",
        "status.enqueued": "cyan",
        "status.scheduled": "blue",
    }
)
_C1 = re.compile("[\x7f-\x9f]")  # what terminals take for commands, beside those below the space
_WIDE = 200  # columns where nobody looks at a terminal: nothing is cut off


class Output:
    """One verb's output, for people or as JSON."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    def document(self, value: Any) -> None:
        """One JSON document a line, on stdout."""
        self._write(_json(value) + "\n")

    def text(self, text: str) -> None:
        """A model's or a user's text, wrapped at words where somebody reads it; as it is where a program does."""
        if self.out.is_terminal:
            self.out.print(Text(text))
        else:
            self._write(text + "\n")

    def piece(self, text: str) -> None:
        """A piece of a text that goes on."""
        if self.out.is_terminal:
            self.out.print(Text(text), end="", soft_wrap=True)
        else:
            self._write(text)

    def show(self, what: RenderableType = "") -> None:
        """A table or a line of ours, on stdout; without the spaces that fill a terminal where there is none."""
        if self.out.is_terminal:
            self.out.print(what)
            return
        with self.out.capture() as shown:
            self.out.print(what, soft_wrap=isinstance(what, str))
        self._write("".join(line.rstrip() + "\n" for line in shown.get().splitlines()))

    def say(self, markup: str) -> None:
        """A line about what happens, on stderr; none with --json."""
        if not self.json:
            self.err.print(markup, soft_wrap=not self.err.is_terminal)

    def error(self, error: PgnexusError) -> None:
        """One clear line, or its JSON."""
        document: dict[str, Any] = {"type": error.type, "message": str(error)}
        if isinstance(error, (RequestError, ResultPending, UnknownRequest)):
            document["request_id"] = str(error.request_id)
        elif isinstance(error, (RunError, RunPending)):
            document["run_id"] = str(error.run_id)
        self._failure(document)

    def fault(self, error: Exception) -> None:
        """A fault of our own."""
        message = f"{type(error).__name__}: {error}"
        self._failure({"type": "internal", "message": message}, " (--verbose shows the traceback)")

    def wrong_usage(self, message: str) -> None:
        self._failure({"type": "usage", "message": message})

    def traceback(self) -> None:
        self.err.print_exception(width=None)

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[str], None]]:
        """A spinner on stderr while the block runs, where there is a terminal.

        Yields how to change its words; without words it goes away, as it must before anything is printed.
        """
        if self.json or not self.err.is_terminal:
            yield lambda _: None
            return
        with self.err.status(what, spinner="dots") as status:
            yield lambda words: status.update(words) if words else status.stop()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _failure(self, document: Mapping[str, Any], hint: str = "") -> None:
        if self.json:
            sys.stderr.write(_json({"error": document}) + "\n")
            sys.stderr.flush()
        else:
            line = Text.assemble(("error: ", "bad"), one_line(document["message"]), (hint, "quiet"))
            self.err.print(line, soft_wrap=True)


def job_document(job: JobResult) -> dict[str, Any]:
    """A stored request as JSON can say it."""
    return asdict(job) | {"cost": _decimal(job.cost)}


def summary(result: LLMResult) -> str:
    """The line under an answer: who gave it, and what it took."""
    usage = result.usage
    parts = [
        f"{result.provider}/{result.model}" if result.provider else None,
        f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens" if usage.total_tokens else None,
        money(result.cost) if result.status == "success" else None,
        duration(result.latency_ms),
        str(result.request_id),
    ]
    return " · ".join(part for part in parts if part)


def money(cost: Decimal | None) -> str:
    """US dollars; an amount that is not 0 never looks like it.

    >>> money(Decimal("0.000125")), money(Decimal("0.0000004")), money(Decimal(0)), money(None)
    ('$0.000125', '<$0.000001', '$0', 'cost unknown')
    """
    if cost is None:
        return "cost unknown"
    if 0 < cost < _LEAST:
        return "<$0.000001"
    if cost >= 1:
        return f"${cost:,.2f}"
    return f"${float(cost):.6f}".rstrip("0").rstrip(".") if cost else "$0"


def duration(milliseconds: float | None) -> str:
    """A time that people can read at a glance.

    >>> duration(12), duration(1234), duration(754_000), duration(None)
    ('12 ms', '1.2 s', '12 min 34 s', '')
    """
    if milliseconds is None:
        return ""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes that people can read at a glance.

    >>> size(0), size(999), size(123_456), size(5_400_000_000)
    ('0 B', '999 B', '123.5 kB', '5.4 GB')
    """
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.95:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def age(moment: datetime, now: datetime) -> str:
    """How long ago, in one unit.

    >>> age(datetime(2030, 1, 1, 10), datetime(2030, 1, 1, 12, 30))
    '2h'
    """
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _decimal(cost: Decimal | None) -> str | None:
    return None if cost is None else format(cost, "f")


def _json(value: Any) -> str:
    text = to_json(value, inf_nan_mode="null").decode()
    return _C1.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # as JSON escapes those below the space


class _Console(Console):
    """One on which no foreign text moves the cursor, colours anything or speaks to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, theme=_THEME, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _WIDE
    return console
