"""Before the first claim: the flows that this process knows, under the slugs the database has for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pgnexus.db.database import Database
from pgnexus.errors import InvalidFlow
from pgnexus.flow.built.builder import FlowBuilder
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.work.plans import Plan, PlannedStep, compile_flow, plan
from pgnexus.printable import one_line

log = logging.getLogger(__name__)

BUILT_QUEUE = "pgflow_built"


class Flows:
    """The flows of one process; ``queues`` and ``handlers`` are what its worker may claim from and for.

    With a ``builder`` these are also flows built at run time, by whomever, of the actions that it allows.
    """

    def __init__(
        self, db: Database, flows: Iterable[Blueprint] = (), *, builder: FlowBuilder | None = None
    ) -> None:
        self._db = db
        self._given = list(flows)
        self._builder = builder
        self._plans: dict[str, Plan] = {}
        self._by_name: dict[str, Plan] = {}
        self.queues: list[str] = []
        self.handlers: list[str] = [] if builder is None else builder.actions.handlers

    def __bool__(self) -> bool:
        """Whether there is anything for a worker to run."""
        return bool(self._given) or self._builder is not None

    async def compile(self) -> None:
        """Have the database know them all; raises `InvalidFlow` for two of one name."""
        for flow in self._given:
            if flow.name in self._by_name:
                raise InvalidFlow(f"flow {flow.name}: two flows of this name in one process; rename one")
            self._run(await compile_flow(self._db, flow))
        if self._builder is not None:
            await self._db.query("create_built_queue")
            self.queues.append(BUILT_QUEUE)

    def find(self, flow_slug: str, step_slug: str) -> PlannedStep | None:
        """The step, if this process knows it."""
        known = self._plans.get(flow_slug)
        return None if known is None else known.steps.get(step_slug)

    def named(self, name: str) -> Plan | None:
        """The flow of this name or slug, if this process knows it."""
        return self._by_name.get(name) or self._plans.get(name)

    async def locate(self, flow: Blueprint | str) -> tuple[str, str, Blueprint | None]:
        """The slug to start, the name it goes by, and the flow itself if this process knows it.

        A flow that is given as such and is new here is made known to the database first.
        """
        if isinstance(flow, str):
            known = self.named(flow)
            return (flow, flow, None) if known is None else (known.flow_slug, known.flow.name, known.flow)
        known = next((one for one in self._plans.values() if one.flow is flow), None)
        if known is None:
            known = await compile_flow(self._db, flow)
            self._plans[known.flow_slug] = known
        return known.flow_slug, flow.name, flow

    async def learn(self, flow_slugs: Iterable[str]) -> None:
        """Read the definitions of built flows that are met for the first time."""
        for flow_slug in flow_slugs:
            if flow_slug in self._plans or self._builder is None:
                continue
            for row in await self._db.query("flow_definition", {"flow": flow_slug}):
                if row.queue_name != BUILT_QUEUE:
                    continue
                try:
                    flow = self._builder.load(row.definition)
                except InvalidFlow as error:
                    log.error("flow %s: its definition cannot be read here: %s", flow_slug, one_line(error))
                else:
                    self._plans[flow_slug] = Plan(flow, flow_slug, BUILT_QUEUE, plan(flow))

    def _run(self, compiled: Plan) -> None:
        self._plans[compiled.flow_slug] = compiled
        self._by_name[compiled.flow.name] = compiled
        if compiled.queue_name not in self.queues:
            self.queues.append(compiled.queue_name)
