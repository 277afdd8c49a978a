"""LLM steps of flows: their requests are stored in the transaction that has their tasks wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from pgnexus.caller.draft import RequestDraft
from pgnexus.caller.joined import refusal
from pgnexus.caller.workflow import WORKFLOW, LlmRequest
from pgnexus.db.connection import Connection
from pgnexus.db.queries import load
from pgnexus.errors import InvalidRequest
from pgnexus.flow.work.deferral import Waiting
from pgnexus.messages import complexity_for
from pgnexus.portions import portions
from pgnexus.settings import Settings


class LLMSteps:
    """The kind of waiting "llm": for a result, which completes the task in the transaction that stores it."""

    grace = 60.0  # for the sweep to end an overdue request, which then ends its task

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def keeps(self, details: Mapping[str, Any] | None) -> dict[str, Any]:
        """All but the request, which is in ``job_results``."""
        return {name: value for name, value in (details or {}).items() if name != "request"}

    async def ask(self, connection: Connection, waiting: Sequence[Waiting]) -> None:
        """Store a request for each; raises `InvalidRequest` before anything is stored."""
        bodies = [self._draft(one).body for one in waiting]
        try:
            for part in portions(bodies, len):
                await connection.execute(load("enqueue"), {"requests": list(part), "notify": True})
        except psycopg.Error as error:
            raise refusal(error) from error

    def _draft(self, one: Waiting) -> RequestDraft:
        asked: Mapping[str, Any] | None = (one.details or {}).get("request")
        if asked is None:
            raise InvalidRequest("only what an LLM step returns can wait for a model; use @flow.llm")
        options: Any = {name: value for name, value in asked.items() if name not in ("messages", "model")}
        task = f"{one.run_id}/{one.step}"
        options |= {
            "request_id": one.token,
            "workflow": WORKFLOW if one.flow == LlmRequest.name else one.flow,
            "instance_id": one.worker_id,
            "job_id": f"{task}/{one.task_index}" if one.is_map else task,
        }
        model = asked.get("model", "auto")
        named = None if model == "auto" else model
        first = named or asked.get("complexity") or complexity_for(asked.get("task_type"))
        return RequestDraft.make(first, asked["messages"], self._settings, **options)
