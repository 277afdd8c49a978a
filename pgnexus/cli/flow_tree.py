"""`pgnexus flow`, steps as a tree: each under the one that it follows, with what has become of it in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Protocol, TypeVar

from pydantic_core import to_json
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from pgnexus.cli.flow_graph import Graph
from pgnexus.cli.output import duration, money
from pgnexus.flow.runs import RunStatus, StepStatus

_GUIDES: Final = 20  # columns of lines before a name at most
_NAME: Final = 40
_BAR: Final = 14
_TOLD: Final = 60  # characters of what a handler told of itself
_GLYPHS: Final = {
    "created": ("○", "quiet"),
    "started": ("●", "key"),
    "waits": ("◷", "warn"),
    "completed": ("✓", "good"),
    "failed": ("✗", "bad"),
    "skipped": ("–", "quiet"),
    "cancelled": ("✗", "status.cancelled"),
}
_WAITS: Final = {"signal": "waits for a signal", "llm": "waits for the model"}


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

    def walk(parent: str | None, guide: str) -> Iterator[tuple[str, str, T]]:
        children = below.get(parent, [])
        for child in children:
            last = child is children[-1]
            before, after = ("", "") if parent is None else ("└ " if last else "├ ", "  " if last else "│ ")
            hangs = "│ " if child.slug in below else "  "
            yield (guide + before)[-_GUIDES:], (guide + after)[-_GUIDES:] + hangs, child
            yield from walk(child.slug, guide + after)

    yield from walk(None, "")


@dataclass(frozen=True, slots=True)
class RunPicture:
    """A run as it was at one moment, with what the database knows beside its `RunStatus`."""

    status: RunStatus
    graph: Graph
    costs: Mapping[str, Any]
    now: datetime

    def document(self) -> dict[str, Any]:
        """The run as JSON can say it; costs are decimal text."""
        run = self.status
        steps = [self._step_document(step) for step in run.steps]
        return {
            "run_id": str(run.run_id),
            "flow": run.flow,
            "status": run.status,
            "started_at": run.started_at,
            "ended_at": run.ended_at,
            "steps_left": run.steps_left,
            "error": run.error,
            "steps": steps,
        }

    def _step_document(self, step: StepStatus) -> dict[str, Any]:
        fields = {name: getattr(step, name) for name in StepStatus.__dataclass_fields__}
        cost = self.costs.get(step.slug)
        llm = cost and {
            "requests": cost.requests,
            "open": cost.open,
            "tokens": cost.tokens,
            "cost": None if cost.cost is None else format(cost.cost, "f"),
            "unknown_costs": cost.unknown_costs,
        }
        return {**fields, "kind": self._kind(step), "llm": llm}

    def render(self, width: int) -> RenderableType:
        """The head, and the tree of its steps."""
        names = max(
            (len(guide) + 2 + len(step.slug) for guide, _, step in tree(self.status.steps)), default=0
        )
        kinds = max((len(self._kind(step)) for step in self.status.steps), default=0)
        lines: list[RenderableType] = [*self._head(), Text()]
        for guide, below, step in tree(self.status.steps):
            lines += self._step(step, guide, below, min(names, _NAME), kinds, width)
        if total := _spent(list(self.costs.values())):
            lines += [Text(), Text(f"models: {total}", style="quiet")]
        return Group(*lines)

    def _head(self) -> list[Text]:
        run = self.status
        glyph, _ = _GLYPHS["started" if run.status == "started" else run.status]
        style = {"started": "key", "completed": "good", "failed": "bad"}.get(run.status, "status.cancelled")
        words = f"{len(run.steps) - run.steps_left} of {len(run.steps)} steps" if not run.ended_at else ""
        took = duration(((run.ended_at or self.now) - run.started_at).total_seconds() * 1000)
        state = Text(" · ").join(
            [Text(f"{glyph} {run.status}", style=style), *(Text(one) for one in (took, words) if one)]
        )
        if self.graph.paused_at is not None and not run.ended_at:
            state.append(f" · the flow is paused: pgnexus flow resume {self.graph.name}", "warn")
        began = run.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        head = Text.assemble((run.flow, "bold"), f"  {run.run_id}  ", (f"since {began}", "quiet"))
        return [head, state]

    def _step(
        self, step: StepStatus, guide: str, below: str, names: int, kinds: int, width: int
    ) -> list[RenderableType]:
        glyph, style = _GLYPHS["waits" if step.waits_for and step.status == "started" else step.status]
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(guide, "quiet").append(f"{glyph} ", style)
        room = names - len(guide) - 2
        slug = step.slug if len(step.slug) <= room else f"{step.slug[: room - 1]}…"
        line.append(slug.ljust(room), "bold" if step.status == "started" else "")
        line.append(f"  {self._kind(step).ljust(kinds)}  ", "quiet")
        line.append_text(self._state(step))
        line.append(f"  {self._took(step)}".rstrip(), "quiet")
        remarks = Text(" · ".join(self._remarks(step)), style="quiet")
        shown: list[RenderableType] = [line]
        if remarks and line.cell_len + 3 + remarks.cell_len <= width:
            line.append("   ").append_text(remarks)
        elif remarks:
            shown.append(_under(remarks, below))
        if step.error and step.status in ("started", "failed", "skipped"):
            shown.append(_under(Text(step.error, style="bad" if step.status == "failed" else "warn"), below))
        return shown

    def _state(self, step: StepStatus) -> Text:
        """What it is at, in some 25 columns."""
        many = step.tasks_total is not None and (step.kind == "map" or step.tasks_total > 1)
        if step.status == "skipped":
            return Text(f"skipped: {(step.skip_reason or '').replace('_', ' ')}", style="quiet")
        if many and step.status in ("started", "completed", "failed"):
            return _bar(step.tasks_done, step.tasks_total or 0, step.status)
        if step.status == "completed":
            return Text("done", style="good")
        if step.status == "failed":
            return Text("failed", style="bad")
        if step.status == "created":
            return Text("" if self.status.ended_at else self._after(step), style="quiet")
        if step.waits_for:
            return Text(_waits(step), style="warn")
        return Text("running" if step.tasks_running else "queued", style="key" if step.tasks_running else "")

    def _after(self, step: StepStatus) -> str:
        left = [slug for slug in step.depends_on if self.status.step(slug).status in ("created", "started")]
        return f"after {', '.join(left)}" if left else ""

    def _took(self, step: StepStatus) -> str:
        if step.started_at is None or step.status == "skipped":
            return ""
        end = step.ended_at or self.status.ended_at or self.now
        return duration(max(0.0, (end - step.started_at).total_seconds() * 1000))

    def _remarks(self, step: StepStatus) -> list[str]:
        said: list[str] = []
        is_map = step.kind == "map"
        if is_map and step.status == "started":
            said += [f"{step.tasks_running:,} running"] if step.tasks_running else []
            said += [_waits(step)] if step.waits_for else []
        if step.attempts > max(1, step.tasks_total or 1):
            said.append(f"{step.attempts:,} attempts")
        if (cost := self.costs.get(step.slug)) and (spent := _spent([cost])):
            said.append(spent)
        if step.status == "started":
            for index, told in list(step.progress.items())[:2]:
                text = to_json(told).decode() if not isinstance(told, str) else told
                text = text if len(text) <= _TOLD else f"{text[:_TOLD]}…"
                said.append(f"task {index}: {text}" if is_map else text)
        return said

    def _kind(self, step: StepStatus) -> str:
        """As its authors call it; the engine knows only single and map."""
        return next((node.sort for node in self.graph.nodes if node.slug == step.slug), step.kind)


def _under(text: Text, guide: str) -> RenderableType:
    """Lines below a step, behind the guide of what stands further below."""
    return Padding(text, (0, 0, 0, len(guide))) if not guide.strip() else _Hung(text, guide)


class _Hung:
    """A text whose every line stands behind the same guide."""

    def __init__(self, text: Text, guide: str) -> None:
        self._text = text
        self._guide = guide

    def __rich_console__(self, console: Any, options: Any) -> Iterator[RenderableType]:
        for line in self._text.wrap(console, max(20, options.max_width - len(self._guide))):
            yield Text.assemble((self._guide, "quiet"), line)


def _waits(step: StepStatus) -> str:
    words = _WAITS.get(step.waits_for or "", f"waits for {step.waits_for}")
    if step.waits_for != "signal" or step.waits_until is None:
        return words
    until = step.waits_until.astimezone()
    same_day = until.date() == datetime.now(UTC).astimezone().date()
    return f"{words}, until {until.strftime('%H:%M' if same_day else '%Y-%m-%d %H:%M')}"


def _bar(done: int, total: int, status: str) -> Text:
    style = {"completed": "good", "failed": "bad"}.get(status, "key")
    full = _BAR if not total else _BAR * done // total
    bar = Text.assemble(("━" * full, style), ("─" * (_BAR - full), "quiet"))
    return bar.append(f" {done:,}/{total:,}")


def _spent(costs: Sequence[Any]) -> str:
    """Tokens and US dollars of some steps."""
    tokens = sum(cost.tokens or 0 for cost in costs)
    known = [cost.cost for cost in costs if cost.cost is not None]
    unknown = sum(cost.unknown_costs for cost in costs)
    said = [f"{tokens:,} tokens"] if tokens else []
    if known:
        said.append(money(sum(known, Decimal(0))) + (f" and {unknown:,} of unknown cost" if unknown else ""))
    elif unknown:
        said.append(money(None))
    return " · ".join(said)
