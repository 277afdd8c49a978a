"""Beside the way of a request: the lanes as the messaging conventions of OpenTelemetry want them named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

_LANES: Final = {
    "interactive": "ai_requests_interactive",
    "standard": "ai_requests",
    "batch": "ai_requests_batch",
}


def queue_of(priority: Any) -> str:
    """The lane of a priority, of which a foreign message may tell anything.

    >>> queue_of("batch"), queue_of(None)
    ('ai_requests_batch', 'ai_requests')
    """
    return _LANES.get(priority, "ai_requests") if isinstance(priority, str) else "ai_requests"


def send_attributes(lane: str) -> dict[str, Any]:
    return {
        "messaging.system": "pgmq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": lane,
    }


def process_attributes(run_id: UUID, attempt: int, lane: str, message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messaging.system": "pgmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": lane,
        "messaging.message.id": str(run_id),
        "pgnexus.request_id": str(run_id),
        "pgnexus.attempt": attempt,
        **asked_attributes(message),
    }


def asked_attributes(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a request says of itself, but for its messages; short texts, for a foreign one may have anything there."""
    names = {
        "complexity": "pgnexus.complexity",
        "task_type": "pgnexus.task_type",
        "agent_id": "gen_ai.agent.id",
    }
    return {name: value[:200] for key, name in names.items() if isinstance(value := asked.get(key), str)}
