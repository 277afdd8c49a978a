"""`pgnexus flow`, under all its verbs: an executor, the database, and how flows and runs are found in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pgnexus.app import App
from pgnexus.cli.flow.graph import Graph, graph_of_rows
from pgnexus.cli.verb import Cli
from pgnexus.errors import InvalidRequest, UnknownFlow, UnknownRun
from pgnexus.flow.runs.executor import Executor
from pgnexus.flow.runs.status import RunStatus

_SHORTEST: Final = 8  # characters of a run's id
_FEW: Final = 5
_PREFIX = re.compile(r"[0-9a-f]*", re.IGNORECASE)


class Door:
    """What the verbs ask of the database, beside what an `Executor` does."""

    def __init__(self, app: App) -> None:
        self._db = app.db
        self._lease = app.settings.worker_lease
        self.hurry = app.hurry
        self.executor: Executor = app.executor

    async def flows(self) -> list[Any]:
        """A row a flow, with its runs and tasks by state."""
        return await self._db.query("list_flows")

    async def workers(self) -> int:
        """How many processes run flows, of whatever kind."""
        [row] = await self._db.query("live_flow_workers", {"lease": self._lease})
        return int(row.workers)

    async def graph(self, name: str, *, exact: bool = False) -> Graph:
        """The newest version of this name, or the flow of this slug; if it is to be ``exact``, only that."""
        rows = await self._db.query("show_flow", {"flow": name, "exact": exact})
        if not rows:
            raise await self.unknown_flow(name)
        return graph_of_rows(rows)

    async def slug(self, name: str) -> str:
        """The name as the executor knows it; raises `UnknownFlow` that says which flows there are."""
        graph = await self.graph(name)
        return graph.handle if graph.name == name else str(graph.flow_slug)

    async def unknown_flow(self, name: str) -> UnknownFlow:
        names = [row.name for row in await self._db.query("flow_names")]
        return UnknownFlow(f"there is no flow {name!r} in the database; {_advice(name, names)}")

    async def run_id(self, text: str) -> UUID:
        """The run whose id this is, or begins with this."""
        digits = text.strip().replace("-", "")
        if not _PREFIX.fullmatch(digits) or not _SHORTEST <= len(digits) <= 32:
            raise InvalidRequest(
                f"{text!r} is no run id: give the whole id, or its first {_SHORTEST} characters or more"
            )
        params = {
            "first": UUID(digits.ljust(32, "0")),
            "last": UUID(digits.ljust(32, "f")),
            "limit": _FEW + 1,
        }
        found = await self._db.query("find_run_ids", params)
        if not found:
            raise UnknownRun(f"run {text}: not stored here; pgnexus flow runs lists them")
        if len(found) > 1:
            some = ", ".join(str(row.run_id) for row in found[:_FEW])
            more = ", …" if len(found) > _FEW else ""
            raise InvalidRequest(f"more than one run id begins with {text}: {some}{more}; give more of it")
        return UUID(str(found[0].run_id))

    async def output(self, run_id: UUID) -> Any:
        """The output of a run that has ended, as JSON has it."""
        rows = await self._db.query("ended_runs", {"run_ids": [run_id]})
        return rows[0].output if rows else None

    async def now(self) -> datetime:
        """The time by the database's clock, by which runs are timed."""
        [row] = await self._db.query("schedule_clock")
        now: datetime = row.now
        return now

    async def costs(self, status: RunStatus) -> dict[str, Any]:
        """What its LLM steps took so far, by step."""
        until = status.ended_at or await self.now()
        params = {"run_id": status.run_id, "since": status.started_at, "until": until}
        return {row.step: row for row in await self._db.query("run_costs", params)}


@asynccontextmanager
async def opened(cli: Cli, **of_app: Any) -> AsyncIterator[Door]:
    """A door that starts and looks; with what an `App` is given for it, it also runs flows."""
    app = App(cli.settings(), **{"caller": False, "nexus": False, **of_app}, executor=True)
    await app.start()
    try:
        yield Door(app)
    finally:
        await app.stop()


def _advice(name: str, names: Sequence[str]) -> str:
    if not names:
        return "there are none yet: start a worker that has it (pgnexus up --flow MODULE:NAME)"
    if close := difflib.get_close_matches(name, names, 1):
        return f"did you mean {close[0]!r}?"
    more = f", … ({len(names):,} in all: pgnexus flow list)" if len(names) > _FEW else ""
    return f"there are {', '.join(names[:_FEW])}{more}"
