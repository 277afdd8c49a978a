"""`pgnexus flow`, what it knows of a flow: its steps and how they hang together, out of the database or the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic_core import to_json

from pgnexus.flow.built.builder import BuiltFlow
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.define.step import Step, WaitStep

_ELSE = {
    "fail": "else the run fails",
    "skip": "else it is skipped",
    "skip-cascade": "else it is skipped with all behind it",
}
_EXHAUSTED = {
    "skip": "skipped when all attempts fail",
    "skip-cascade": "skipped with all behind it when all attempts fail",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A step; what is None or empty here is as the flow has it. Times are seconds."""

    slug: str
    kind: str = "single"
    is_map: bool = False
    depends_on: tuple[str, ...] = ()
    max_attempts: int | None = None
    base_delay: int | None = None
    timeout: int | None = None
    start_delay: int | None = None
    only_if: dict[str, Any] | None = None
    unless: dict[str, Any] | None = None
    when_unmet: str = "skip"
    when_exhausted: str = "fail"
    pure: bool = False
    transactional: bool = False
    waits: float | None = None
    handler: str | None = None
    doc: str | None = None

    @property
    def sort(self) -> str:
        """Its kind in a word or two.

        >>> Node(slug="ask", kind="llm", is_map=True).sort
        'llm map'
        """
        return f"{self.kind} map" if self.is_map and self.kind != "map" else self.kind

    def remarks(self) -> list[str]:
        """Whatever else there is to say of it, in short phrases."""
        said: list[str] = []
        if self.is_map:
            said.append(f"over {self.depends_on[0] if self.depends_on else 'the input'}")
        if self.waits is not None:
            said.append(f"{_span(self.waits)} at most")
        said += [
            word for word, is_so in (("pure", self.pure), ("transactional", self.transactional)) if is_so
        ]
        if self.start_delay:
            said.append(f"begins {_span(self.start_delay)} later")
        if self.max_attempts is not None:
            said.append(_attempts(self.max_attempts))
        if self.base_delay is not None:
            said.append(f"retried after {_span(2 * self.base_delay)} at first")
        if self.timeout is not None:
            said.append(f"timeout {_span(self.timeout)}")
        said += self._conditions()
        if self.when_exhausted in _EXHAUSTED:
            said.append(_EXHAUSTED[self.when_exhausted])
        return said

    def _conditions(self) -> list[str]:
        patterns = (("only if", self.only_if), ("unless", self.unless))
        said = [f"{word} {to_json(pattern).decode()}" for word, pattern in patterns if pattern is not None]
        return [*said, _ELSE[self.when_unmet]] if said else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A flow with its steps, dependencies first."""

    name: str
    flow_slug: str | None  # None: only in code
    version: int | None
    versions: int
    built: bool  # at run time, of a description
    paused_at: datetime | None
    max_attempts: int
    base_delay: int
    timeout: int
    nodes: tuple[Node, ...]

    @property
    def handle(self) -> str:
        """What it is started, paused and looked up by: flows built at run time may share their name."""
        return self.flow_slug if self.built and self.flow_slug is not None else self.name

    def document(self) -> dict[str, Any]:
        """The flow as JSON can say it."""
        found = asdict(self)
        return {**found, "steps": found.pop("nodes")}

    def options(self) -> str:
        """What holds for steps that say nothing else."""
        return (
            f"{_attempts(self.max_attempts)}, retried after {_span(2 * self.base_delay)} at first, "
            f"timeout {_span(self.timeout)}"
        )


def graph_of_rows(rows: Sequence[Any]) -> Graph:
    """The flow that the rows of `show_flow` tell of, one a step."""
    first = rows[0]
    told = {step["slug"]: step for step in (first.definition or {}).get("steps", ())}
    nodes = [_node_of_row(row, told.get(row.step_slug, {})) for row in rows if row.step_slug is not None]
    return Graph(
        name=first.name,
        flow_slug=first.flow_slug,
        version=first.version,
        versions=first.versions,
        built=first.built,
        paused_at=first.paused_at,
        max_attempts=first.flow_max_attempts,
        base_delay=first.flow_base_delay,
        timeout=first.flow_timeout,
        nodes=tuple(nodes),
    )


def _node_of_row(row: Any, told: Mapping[str, Any]) -> Node:
    return Node(
        slug=row.step_slug,
        kind=told.get("kind", row.step_type),
        is_map=row.step_type == "map",
        depends_on=tuple(row.depends_on),
        max_attempts=row.opt_max_attempts,
        base_delay=row.opt_base_delay,
        timeout=row.opt_timeout,
        start_delay=row.opt_start_delay,
        only_if=row.required_input_pattern,
        unless=row.forbidden_input_pattern,
        when_unmet=row.when_unmet,
        when_exhausted=row.when_exhausted,
        pure=told.get("pure", False),
        transactional=told.get("transactional", False),
        waits=told.get("timeout"),
        handler=row.handler,
        doc=told.get("doc"),
    )


def graph_of_code(flow: Blueprint) -> Graph:
    """The same of a flow in this process."""
    flow.check()
    options = flow.options
    return Graph(
        name=flow.name,
        flow_slug=None,
        version=None,
        versions=0,
        built=isinstance(flow, BuiltFlow),
        paused_at=None,
        max_attempts=options.max_attempts,
        base_delay=options.base_delay,
        timeout=options.timeout,
        nodes=tuple(_node_of_step(step) for step in flow.steps.values()),
    )


def _node_of_step(step: Step) -> Node:
    options = step.options
    return Node(
        slug=step.slug,
        kind=step.kind,
        is_map=step.is_map,
        depends_on=step.depends_on,
        max_attempts=options.max_attempts,
        base_delay=options.base_delay,
        timeout=options.timeout,
        start_delay=options.start_delay,
        only_if=options.only_if,
        unless=options.unless,
        when_unmet=options.when_unmet,
        when_exhausted=options.when_exhausted,
        pure=step.pure,
        transactional=step.transactional,
        waits=step.timeout if isinstance(step, WaitStep) else None,
        handler=step.handler_name,
        doc=step.doc,
    )


def mermaid(graph: Graph) -> str:
    """The graph as Mermaid text, for documents.

    Ids are made, for a step may be called what is a keyword there.
    """
    ids = {node.slug: f"s{place}" for place, node in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for node in graph.nodes:
        left, right = ("([", "])") if node.kind == "wait" else ("[[", "]]") if node.is_map else ("[", "]")
        label = node.slug if node.sort == "single" else f"{node.slug}<br/>{node.sort}"
        lines.append(f'    {ids[node.slug]}{left}"{label}"{right}')
    for node in graph.nodes:
        conditional = node.only_if is not None or node.unless is not None
        arrow = "-.->" if conditional else "-->"
        lines += [f"    {ids[slug]} {arrow} {ids[node.slug]}" for slug in node.depends_on]
    return "\n".join(lines)


def _attempts(count: int) -> str:
    return f"{count} attempt{'s' if count != 1 else ''}"


def _span(seconds: float) -> str:
    """A time that somebody chose, in its largest whole unit.

    >>> _span(90), _span(120), _span(3 * 86400), _span(86400)
    ('90 s', '2 min', '3 days', '1 day')
    """
    for unit, size in (("day", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if unit == 'day' and number > 1 else ''}"
    return f"{seconds:g} s"
