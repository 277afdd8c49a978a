"""Gates on a database of the test's own, without the rest of a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json

from pgnexus.db.database import Database
from pgnexus.messages import Priority
from pgnexus.nexus.books.attempt import Charge, Estimate
from pgnexus.nexus.limits.gate import Gate
from pgnexus.nexus.limits.permit import Ask, OverBudget, OverLimit, Permit
from pgnexus.nexus.workflow import FLOW_SLUG
from pgnexus.settings import Settings
from tests.system import sql


async def register(db: Database, lease: float = 60.0) -> UUID:
    """An instance that gives a sign of life."""
    instance = uuid4()
    params = {"worker_id": instance, "queue_name": FLOW_SLUG, "function_name": "test", "lease": lease}
    await db.query("heartbeat", params)
    return instance


async def bury(db: Database, instance: UUID) -> None:
    """An instance that gave no sign of life for long is given up."""
    await sql(db, "update pgflow.workers set stopped_at = now() where worker_id = %s", instance)
    await sql(db, "select nexus.release_holdings(%s)", instance)


@asynccontextmanager
async def gate(db: Database, instance: UUID | None = None, **settings: Any) -> AsyncIterator[Gate]:
    """A started gate with limits and budgets as in pgnexus.toml."""
    found = Gate(db, Settings.load(**settings), instance or await register(db))
    await found.start()
    try:
        yield found
    finally:
        await found.stop()


def ask(
    *,
    provider: str = "openai",
    model: str = "gpt-4o",
    key: str | None = "OPENAI_API_KEY",
    agent: str | None = None,
    priority: Priority = "standard",
    tokens: int = 100,
    cost: str | None = "0.01",
) -> Ask:
    estimate = Estimate(tokens, 0, None if cost is None else Decimal(cost))
    return Ask(provider, model, key, agent, priority, estimate)


async def passed(gate: Gate, patience: float = 5.0, **of_ask: Any) -> Permit:
    """A permit, which there must be."""
    answer = await gate.admit(ask(**of_ask), patience=patience)
    assert isinstance(answer, Permit), answer
    return answer


async def refused(gate: Gate, patience: float = 0.0, **of_ask: Any) -> OverLimit | OverBudget:
    """A refusal, which there must be."""
    answer = await gate.admit(ask(**of_ask), patience=patience)
    assert not isinstance(answer, Permit)
    return answer


async def book(db: Database, instance: UUID, *charges: Charge) -> None:
    """Pay for calls as T3 does."""
    items = [to_json(charge.to_json()).decode() for charge in charges]
    await sql(db, "select nexus.charge(%s, %s::text[]::jsonb[])", instance, items)


async def standing(db: Database, scope: str, kind: str) -> Any:
    """What nexus_api.limits() says of one amount."""
    rows = await sql(db, "select * from nexus_api.limits() where scope = %s and kind = %s", scope, kind)
    return rows[0] if rows else None
