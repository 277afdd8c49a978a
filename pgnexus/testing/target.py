"""Beside a test: the database of whatever the test has in hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pgnexus.caller.service import LLMService
from pgnexus.db.database import Database
from pgnexus.flow.runs.executor import Executor

Target = str | Database | Executor | LLMService


@asynccontextmanager
async def database_of(target: Target) -> AsyncIterator[Database]:
    """The target's `Database`; of a URL, one that is open meanwhile."""
    if isinstance(target, Database):
        yield target
    elif isinstance(target, str):
        db = await Database.open(target, pool_size=2, application_name="pgnexus testing")
        try:
            yield db
        finally:
            await db.close()
    else:
        yield target.database
