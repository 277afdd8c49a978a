"""`pgnexus flow`, steps as a tree: each under the one that it follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

_GUIDES: Final = 20  # columns of lines before a name at most


class Placed(Protocol):
    """What has a place in a tree."""

    @property
    def slug(self) -> str: ...
    @property
    def depends_on(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=Placed)


def tree(steps: Sequence[T]) -> Iterator[tuple[str, str, T]]:
    """Each step with the lines before it and before what stands below it.

    A step is below the last of those that it depends on. ``steps`` has dependencies first.
    """
    depth: dict[str, int] = {}
    below: dict[str | None, list[T]] = {None: []}
    place = {step.slug: index for index, step in enumerate(steps)}
    for step in steps:
        parent = max(step.depends_on, key=lambda slug: (depth[slug], place[slug]), default=None)
        depth[step.slug] = 0 if parent is None else depth[parent] + 1
        below.setdefault(parent, []).append(step)

    waiting = [(step, "", "") for step in reversed(below[None])]
    while waiting:
        step, guide, under = waiting.pop()
        children = below.get(step.slug, [])
        yield guide[-_GUIDES:], under[-_GUIDES:] + ("│ " if children else "  "), step
        for child in reversed(children):
            line, space = ("└ ", "  ") if child is children[-1] else ("├ ", "│ ")
            waiting.append((child, under + line, under + space))


class Hung:
    """A text whose every line stands behind the same guide."""

    def __init__(self, text: Text, guide: str) -> None:
        self._text = text
        self._guide = guide

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for line in self._text.wrap(console, max(20, options.max_width - len(self._guide))):
            yield Text.assemble((self._guide, "quiet"), line)
