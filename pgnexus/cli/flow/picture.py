"""`pgnexus flow`, one run as it is at a moment: as a tree for people, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from pydantic_core import to_json
from rich.console import Group, RenderableType
from rich.text import Text

from pgnexus.cli.flow.graph import Graph
from pgnexus.cli.flow.tree import Hung, tree
from pgnexus.cli.output import duration, money
from pgnexus.flow.runs.status import RunStatus, StepStatus

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


@dataclass(frozen=True, slots=True)
class RunPicture:
    """A run as it was at one moment, with what the database knows beside its `RunStatus`."""

    status: RunStatus
    graph: Graph
    costs: Mapping[str, Any]
    now: datetime
    workers: int  # alive, for flows of any kind

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
        """The head, the tree of its steps, and what can be done about it."""
        steps = list(tree(self.status.steps))
        names = min(max((len(guide) + 2 + len(step.slug) for guide, _, step in steps), default=0), _NAME)
        kinds = max((len(self._kind(step)) for *_, step in steps), default=0)
        states = [self._state(step) for *_, step in steps]
        timed = [
            state for state, (*_, step) in zip(states, steps, strict=True) if step.started_at is not None
        ]
        wide = max((state.cell_len for state in timed), default=0)
        lines: list[RenderableType] = [*self._head(), Text()]
        for (guide, below, step), state in zip(steps, states, strict=True):
            line = self._name(step, guide, names)
            line.append(f"  {self._kind(step).ljust(kinds)}  ", "quiet").append_text(state)
            line.append(f"{' ' * (wide - state.cell_len)} {self._took(step):>9}".rstrip(), "quiet")
            lines += [line, *self._below(step, line, below, width)]
        if total := _spent(list(self.costs.values())):
            lines += [Text(), Text(f"models: {total}", style="quiet")]
        if advice := self._advice():
            lines += [Text(), *(Text(one, style="quiet") for one in advice)]
        return Group(*lines)

    def _is_left_alone(self) -> bool:
        """Whether tasks are there and nobody who could take them."""
        begun = [step for step in self.status.steps if step.status == "started"]
        return not self.workers and any(not step.waits_for and not step.tasks_running for step in begun)

    def _advice(self) -> list[str]:
        """The commands that bring it on."""
        run = self.status
        if run.status in ("failed", "cancelled"):
            return [f"pgnexus flow retry {run.run_id}"]
        if self.graph.paused_at is not None and not run.ended_at:
            return [f"pgnexus flow resume {self.graph.handle}"]
        if self._is_left_alone():
            return ["pgnexus up --flow MODULE:NAME"]
        waiting = [step for step in run.steps if step.waits_for == "signal"]
        return [f"pgnexus flow signal {run.run_id} {step.slug} -p JSON" for step in waiting]

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
            state.append(" · the flow is paused", "warn")
        elif self._is_left_alone():
            state.append(" · no worker for flows is alive", "warn")
        began = run.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        head = Text.assemble((run.flow, "bold"), f"  {run.run_id}  ", (f"since {began}", "quiet"))
        return [head, state]

    def _name(self, step: StepStatus, guide: str, names: int) -> Text:
        glyph, style = _GLYPHS["waits" if step.waits_for and step.status == "started" else step.status]
        room = names - len(guide) - 2
        slug = step.slug if len(step.slug) <= room else f"{step.slug[: room - 1]}…"
        line = Text.assemble((guide, "quiet"), (f"{glyph} ", style), no_wrap=True, overflow="ellipsis")
        return line.append(slug.ljust(room), "bold" if step.status == "started" else "")

    def _below(self, step: StepStatus, line: Text, guide: str, width: int) -> list[RenderableType]:
        """What else is to be said: in the step's line if it has room, else below it; and its error."""
        shown: list[RenderableType] = []
        remarks = Text(" · ".join(self._remarks(step)), style="quiet")
        if remarks and line.cell_len + 3 + remarks.cell_len <= width:
            line.append("   ").append_text(remarks)
        elif remarks:
            shown.append(Hung(remarks, guide))
        if step.error and step.status in ("started", "failed", "skipped"):
            style = "bad" if step.status == "failed" else "warn"
            shown.append(Hung(Text(step.error.rstrip(), style=style), guide))
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
            return Text(_WAITS.get(step.waits_for, f"waits for {step.waits_for}"), style="warn")
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
            said += [_WAITS.get(step.waits_for, f"waits for {step.waits_for}")] if step.waits_for else []
        if step.status == "started" and (until := _until(step)):
            said.append(until)
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


def _until(step: StepStatus) -> str:
    """By when a person has to have answered."""
    if step.waits_for != "signal" or step.waits_until is None:
        return ""
    until = step.waits_until.astimezone()
    same_day = until.date() == datetime.now(UTC).astimezone().date()
    return f"until {until.strftime('%H:%M' if same_day else '%Y-%m-%d %H:%M')}"


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
