"""Nexus side, an input of the choice of a model: everything of a request that decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pgnexus.messages import Complexity, LLMRequest
from pgnexus.nexus.selection.needs import Needs

_NONE: Final = Needs()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What decides the choice; ``model`` and ``provider`` may be "auto"."""

    complexity: Complexity
    task_type: str | None = None
    agent_id: str | None = None
    model: str = "auto"
    provider: str = "auto"
    needs: Needs = _NONE

    @classmethod
    def by(cls, request: LLMRequest) -> Wanted:
        return cls(
            request.effective_complexity,
            request.task_type,
            request.agent_id,
            request.model,
            request.provider,
            Needs.of(request),
        )

    def __str__(self) -> str:
        if self.model != "auto":
            return f"model {self.model}"
        return f"complexity {self.complexity}" if self.provider == "auto" else f"provider {self.provider}"
