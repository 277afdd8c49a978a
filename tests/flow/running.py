"""An executor with what it runs, in one process, on a test's database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pgnexus.app import App
from pgnexus.db.database import Database
from pgnexus.flow.built.builder import FlowBuilder
from pgnexus.flow.define.blueprint import Blueprint
from tests.system import fast, sql


@asynccontextmanager
async def started(
    database_url: str, *flows: Blueprint, builder: FlowBuilder | None = None, **settings: Any
) -> AsyncIterator[App]:
    """A running `App` with an executor, and a worker for these flows."""
    app = App(fast(database_url, **settings), nexus=False, flows=flows, builder=builder, executor=True)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def tasks(db: Database, run_id: Any) -> list[Any]:
    """The rows of a run's tasks."""
    return await sql(
        db,
        "select step_slug, task_index, status, attempts_count as attempts, error_message as error, last_worker_id"
        " from pgflow.step_tasks where run_id = %s order by step_slug, task_index",
        run_id,
    )
