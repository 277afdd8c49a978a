"""Before the first claim: a flow as the database has compiled it, and what each step's place in it means."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from pydantic_core import to_json

from pgnexus.db.connection import is_data_fault
from pgnexus.db.database import Database
from pgnexus.errors import InvalidFlow
from pgnexus.flow.built.builder import BuiltFlow
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.define.step import Step


@dataclass(slots=True, eq=False)
class PlannedStep:
    """A step, and what its place in the flow means for who runs it."""

    step: Step
    slug: str
    flow_name: str
    then: PlannedStep | None = None  # the pure step to run in the same go
    feeds_map: bool = False  # its output must be an array
    leads_to_delay: bool = False  # something behind it waits for a time of day, not for a worker


@dataclass(frozen=True, slots=True)
class Plan:
    """A flow of this process, under the slug that the database knows it by."""

    flow: Blueprint
    flow_slug: str
    queue_name: str
    steps: dict[str, PlannedStep]


async def compile_flow(db: Database, flow: Blueprint) -> Plan:
    """Have the database know the flow; a changed shape becomes a version beside the old one.

    One that was built at run time is known by what it is.
    """
    params = {
        "name": flow.name,
        "shape": to_json(flow.shape()).decode(),
        "definition": to_json(flow.definition()).decode(),
    }
    built = isinstance(flow, BuiltFlow)
    try:
        [row] = await db.query("register_built_flow" if built else "compile_flow", params)
    except psycopg.Error as error:
        if is_data_fault(error):
            raise InvalidFlow(f"flow {flow.name}: {error.diag.message_primary or error}") from error
        raise
    return Plan(flow, row.flow_slug, row.queue_name, plan(flow))


def plan(flow: Blueprint) -> dict[str, PlannedStep]:
    """The flow's steps by slug."""
    planned = {slug: PlannedStep(step, slug, flow.name) for slug, step in flow.steps.items()}
    children: dict[str, list[PlannedStep]] = {slug: [] for slug in planned}
    for one in planned.values():
        for dep in one.step.depends_on:
            children[dep].append(one)
    for slug, below in children.items():
        planned[slug].feeds_map = any(child.step.is_map for child in below) and not planned[slug].step.is_map
        planned[slug].leads_to_delay = any(child.step.options.start_delay for child in below)
        if len(below) == 1 and not planned[slug].step.is_map and _goes_along(below[0].step):
            planned[slug].then = below[0]
    return planned


def _goes_along(step: Step) -> bool:
    """Whether a step may be run by the worker of the one before it, as soon as that has its output."""
    options = step.options
    waits = options.start_delay or options.only_if is not None or options.unless is not None
    return bool(step.pure and step.kind == "single" and len(step.depends_on) == 1 and not waits)
