"""Nexus side, before the step `route_llm`: answers given before, and requests of the same words under way.

Both are asked for: by the request (``cache`` seconds, ``single_flight``) or by its route (``cache``). Nothing is given
to another agent unless the route shares with all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.messages import LLMRequest, Usage
from pgnexus.nexus.selection import Candidate, Selection
from pgnexus.policy import RouteSettings
from pgnexus.printable import one_line
from pgnexus.providers.provider import Completion

log = logging.getLogger(__name__)

_MATTERS = (
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
    "api_version",
)


@dataclass(frozen=True, slots=True)
class Saving:
    """What may be saved on one request: the key of its words, and for how many seconds its answer is kept.

    ``ttl`` None: only for those of the same words that ask while it is under way.
    """

    key: bytes
    ttl: float | None
    flight: bool

    @property
    def scope(self) -> str:
        """Where those wait that follow."""
        return f"flight:{self.key.hex()}"

    @classmethod
    def of(cls, request: LLMRequest, selection: Selection) -> Saving | None:
        """None when neither the request nor its route asks to save."""
        ttl = selection.route.cache if request.cache is None else request.cache
        if ttl is None and not request.single_flight:
            return None
        key = saving_key(request, selection.candidates, selection.route)
        # a stream leads or follows nobody: its reader wants to see it come
        return cls(key, ttl, flight=not request.stream)


def saving_key(request: LLMRequest, candidates: Sequence[Candidate], route: RouteSettings) -> bytes:
    """SHA-256 of everything that an answer hangs on: the words and how they are to be answered, the candidates,
    fields that we do not know, and the agent unless the route shares with all.
    """
    asked = request.model_dump(mode="json", include=set(_MATTERS), exclude_none=True)
    owner = None if route.share == "all" else [request.agent_id]
    parts = [asked, request.model_extra or {}, sorted(map(str, candidates)), owner]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest()


@dataclass(frozen=True, slots=True)
class Found:
    """An answer that need not be asked for; ``how`` says whether it was made before, or for another meanwhile."""

    how: Literal["cached", "shared"]
    completion: Completion
    candidate: Candidate


class Savings:
    """The answers and flights in the database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def look(self, request: LLMRequest, saving: Saving) -> Found | Literal["ask", "follow"]:
        """The answer, or whether to ask for it; with ``follow`` somebody else is asking."""
        params = {
            "request_id": request.request_id,
            "key": saving.key,
            "kept": saving.ttl is not None,
            "flight": saving.flight,
        }
        try:
            [row] = await self._db.query("look_up_answer", params)
        except (DatabaseUnavailable, psycopg.Error) as error:
            why = one_line(error)
            log.warning("request %s: asked anew, no saving could be looked up: %s", request.request_id, why)
            return "ask"
        if row.how == "follow":
            return "follow"
        return _found(row.how, row.answer) if row.answer is not None else "ask"


def _found(how: Literal["cached", "shared"], answer: dict[str, Any]) -> Found:
    told = Completion(
        message=answer["message"],
        text=answer["text"],
        model=answer["model"],
        finish_reason=answer["finish_reason"],
        usage=Usage(),
        mended=answer["mended"],
    )
    return Found(how, told, Candidate(answer["provider"], answer["asked"]))


def answer_of(completion: Completion, candidate: Candidate) -> dict[str, Any]:
    """What is kept of an answer."""
    return {
        "message": completion.message,
        "text": completion.text,
        "model": completion.model,
        "finish_reason": completion.finish_reason,
        "mended": completion.mended,
        "provider": candidate.provider,
        "asked": candidate.model,
    }
