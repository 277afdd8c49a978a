"""`pgnexus flow show`, its drawing: steps as boxes in layers, joined by lines from top to bottom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from statistics import fmean, median

from rich.cells import cell_len
from rich.text import Text

from pgnexus.cli.flow.graph import Node

_GAP = 3  # columns between two boxes
_LONGEST = 28  # of a name in a box
_SWEEPS = 4
UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
_LINES = " ╵╷│╴┘┐┤╶└┌├─┴┬┼"  # by the directions a cell is joined to
_STYLES = {"llm": "magenta", "wait": "yellow", "map": "cyan"}


@dataclass(eq=False)
class _Box:
    """What has a place in a layer: a step, or where a line passes that ends further below (no node)."""

    node: Node | None
    labels: tuple[str, ...] = ()
    above: list[_Box] = field(default_factory=list)
    below: list[_Box] = field(default_factory=list)
    center: int = 0

    @property
    def width(self) -> int:
        return max(map(cell_len, self.labels)) + 4 if self.labels else 1

    @property
    def left(self) -> int:
        return self.center - (self.width - 1) // 2


def draw(nodes: Sequence[Node], width: int) -> list[Text] | None:
    """The graph's lines; None when they would be wider than ``width``."""
    layers = _layers(nodes)
    if any(sum(box.width + _GAP for box in layer) > width + _GAP for layer in layers):
        return None
    _order(layers)
    _place(layers)
    canvas = _Canvas()
    top = 0
    for place, layer in enumerate(layers):
        height = max(len(box.labels) for box in layer) + 2
        for box in layer:
            _draw_box(canvas, box, top, height)
        top += height
        if place < len(layers) - 1:
            top += _join(canvas, layer, top)
    lines = canvas.lines()
    return lines if max((line.cell_len for line in lines), default=0) <= width else None


def _layers(nodes: Sequence[Node]) -> list[list[_Box]]:
    """Each step one layer below the lowest that it depends on; lines pass each layer between."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.slug] = 1 + max((depth[slug] for slug in node.depends_on), default=-1)
    layers: list[list[_Box]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    boxes: dict[str, _Box] = {}
    passing: dict[tuple[str, int], _Box] = {}  # lines from one step share their way
    for node in nodes:
        box = boxes[node.slug] = _Box(node, _labels(node))
        layers[depth[node.slug]].append(box)
        for slug in node.depends_on:
            upper = boxes[slug]
            for level in range(depth[slug] + 1, depth[node.slug]):
                if (slug, level) not in passing:
                    passing[slug, level] = _Box(None)
                    layers[level].append(passing[slug, level])
                    _link(upper, passing[slug, level])
                upper = passing[slug, level]
            _link(upper, box)
    return layers


def _link(upper: _Box, lower: _Box) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def _labels(node: Node) -> tuple[str, ...]:
    name = node.slug if len(node.slug) <= _LONGEST else f"{node.slug[: _LONGEST - 1]}…"
    conditional = node.only_if is not None or node.unless is not None
    return (name, f"{node.sort}{' if…' if conditional else ''}")


def _order(layers: list[list[_Box]]) -> None:
    """Boxes beside those that they hang together with, so that few lines cross."""
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        ordered = layers if downwards else layers[::-1]
        for before, layer in pairwise(ordered):
            places = {box: place for place, box in enumerate(before)}
            own = {box: float(place) for place, box in enumerate(layer)}
            for box in layer:
                beside = [places[one] for one in (box.above if downwards else box.below)]
                own[box] = fmean(beside) if beside else own[box]
            layer.sort(key=own.__getitem__)


def _place(layers: list[list[_Box]]) -> None:
    """Columns: each box as near to the middle of what it hangs together with as its neighbours let it."""
    for layer in layers:
        _spread(layer, dict.fromkeys(layer, 0.0))
    for sweep in range(2 * _SWEEPS + 1):
        downwards = sweep % 2 == 0
        for layer in layers if downwards else layers[::-1]:
            beside = {box: box.above if downwards else box.below for box in layer}
            _spread(layer, {box: median([one.center for one in beside[box] or (box,)]) for box in layer})
    leftmost = min((box.left for layer in layers for box in layer), default=0)
    for layer in layers:
        for box in layer:
            box.center -= leftmost


def _spread(layer: Sequence[_Box], wanted: Mapping[_Box, float]) -> None:
    """The places nearest to those wanted at which no two boxes touch: neighbours that would are moved as one."""
    offsets: list[int] = []
    for place, box in enumerate(layer):
        previous = layer[place - 1] if place else None
        step = 0 if previous is None else (previous.width // 2 + _GAP + (box.width + 1) // 2)
        offsets.append((offsets[-1] if offsets else 0) + step)
    groups: list[list[float]] = []
    for box, offset in zip(layer, offsets, strict=True):
        groups.append([wanted[box] - offset])
        while len(groups) > 1 and median(groups[-2]) >= median(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = (round(median(group)) for group in groups for _ in group)
    for box, offset, by in zip(layer, offsets, moved, strict=True):
        box.center = by + offset


def _draw_box(canvas: _Canvas, box: _Box, top: int, height: int) -> None:
    if box.node is None:
        canvas.down(box.center, top, top + height - 1)
        return
    style = _STYLES.get("map" if box.node.is_map and box.node.kind != "llm" else box.node.kind, "")
    corners, across, down = ("╔╗╚╝", "═", "║") if box.node.is_map else ("╭╮╰╯", "─", "│")
    inner = box.width - 2
    canvas.write(top, box.left, f"{corners[0]}{across * inner}{corners[1]}", style)
    for row, label in enumerate(box.labels, top + 1):
        canvas.write(row, box.left, f"{down}{' ' * inner}{down}", style)
        left = box.left + 1 + (inner - cell_len(label)) // 2
        canvas.write(row, left, label, "bold" if row == top + 1 else f"{style} dim".strip())
    bottom = top + len(box.labels) + 1
    canvas.write(bottom, box.left, f"{corners[2]}{across * inner}{corners[3]}", style)
    if box.below:
        canvas.write(bottom, box.center, "╤" if box.node.is_map else "┬", style)
        canvas.down(box.center, bottom + 1, top + height - 1)


def _join(canvas: _Canvas, layer: Sequence[_Box], top: int) -> int:
    """The lines from a layer to the next; how many rows they take."""
    tracks = _tracks(layer)
    last = top + max(tracks.values(), default=-1) + 1
    for upper in layer:
        row = top + tracks.get(upper, 0)
        for lower in upper.below:
            if lower.center == upper.center:
                canvas.down(upper.center, top, last)
                continue
            canvas.down(upper.center, top, row, ends=True)
            canvas.across(row, upper.center, lower.center)
            canvas.down(lower.center, row, last, begins=True)
    for box in {lower for upper in layer for lower in upper.below if lower.node is not None}:
        canvas.write(last, box.center, "▼", "")
    return last - top + 1


@dataclass(frozen=True, eq=False)
class _Bus:
    """What leads to the same boxes runs sideways in one line."""

    starts: frozenset[int]
    ends: frozenset[int]

    def comes_down_on(self, other: _Bus) -> bool:
        """Whether it ends in a column in which another still goes down."""
        return bool(self.ends & other.starts)

    def overlaps(self, other: _Bus) -> bool:
        mine, its = self.starts | self.ends, other.starts | other.ends
        return max(min(mine), min(its)) <= min(max(mine), max(its))


def _tracks(layer: Sequence[_Box]) -> dict[_Box, int]:
    """In which row each box's lines run sideways, for those that do."""
    alike: defaultdict[frozenset[_Box], list[_Box]] = defaultdict(list)
    for box in layer:
        alike[frozenset(box.below)].append(box)
    buses = {
        below: _Bus(frozenset(box.center for box in boxes), frozenset(box.center for box in below))
        for below, boxes in alike.items()
    }
    left = [bus for bus in buses.values() if bus.ends and len(bus.starts | bus.ends) > 1]
    rows: dict[_Bus, int] = {}
    while left:
        clear = (bus for bus in left if not any(bus.comes_down_on(o) for o in left if o is not bus))
        bus = next(clear, left[0])
        left.remove(bus)
        first = 1 + max((row for o, row in rows.items() if bus.comes_down_on(o)), default=-1)
        taken = {row for o, row in rows.items() if bus.overlaps(o)}
        rows[bus] = next(row for row in count(first) if row not in taken)
    return {
        box: rows[buses[below]] for below, boxes in alike.items() for box in boxes if buses[below] in rows
    }


class _Canvas:
    """Cells by row and column: letters, and lines that know what they are joined to."""

    def __init__(self) -> None:
        self._letters: dict[tuple[int, int], tuple[str, str]] = {}
        self._upright: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._level: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._joints: set[tuple[int, int]] = set()

    def write(self, row: int, column: int, text: str, style: str) -> None:
        for place, letter in enumerate(text, column):
            self._letters[row, place] = (letter, style)

    def down(self, column: int, first: int, last: int, *, begins: bool = False, ends: bool = False) -> None:
        """A line down a column; one that begins, or ends, does so in the middle of that row."""
        for row in range(first, last + 1):
            up = 0 if begins and row == first else UP
            self._upright[row, column] |= up | (0 if ends and row == last else DOWN)

    def across(self, row: int, start: int, end: int) -> None:
        """A line along a row, joined to those that come and go at its ends."""
        low, high = sorted((start, end))
        for column in range(low, high + 1):
            self._level[row, column] |= (LEFT if column > low else 0) | (RIGHT if column < high else 0)
        self._joints |= {(row, start), (row, end)}

    def lines(self) -> list[Text]:
        """What is drawn. Where two lines only cross, the one that goes down is drawn over the other."""
        cells: defaultdict[int, dict[int, tuple[str, str]]] = defaultdict(dict)
        for at in self._upright.keys() | self._level.keys():
            upright, level = self._upright.get(at, 0), self._level.get(at, 0)
            crossed = upright and level and at not in self._joints
            cells[at[0]][at[1]] = (_LINES[upright if crossed else upright | level], "")
        for (row, column), letter in self._letters.items():
            cells[row][column] = letter
        return [_line(cells[row]) for row in sorted(cells)]


def _line(cells: Mapping[int, tuple[str, str]]) -> Text:
    line = Text(no_wrap=True)
    for column in range(max(cells) + 1):
        line.append(*cells.get(column, (" ", "")))
    return line
