"""Nexus side, an input of the choice of a model: the table of routes, and which row holds for a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pgnexus.messages import Complexity
from pgnexus.nexus.selection.candidate import Candidate
from pgnexus.policy import RouteSettings

_CODE = ["openai/gpt-5.3-codex", "anthropic/claude-sonnet-5-5", "xai/grok-4.7", "mistral/mistral-large-4"]
_ARCHITECTURE = [
    "anthropic/claude-opus-5-5",
    "openai/gpt-6.1-sol",
    "gemini/gemini-2.5-pro",
    "xai/grok-4.7",
]

DEFAULT_ROUTES: Final[Mapping[str, RouteSettings]] = {
    "simple": RouteSettings(
        models=[
            "gemini/gemini-3.8-flash",
            "openai/gpt-4o-mini",
            "anthropic/claude-haiku-5-5",
            "mistral/mistral-small-latest",
            "deepseek/deepseek-v4-flash",
            "groq/openai/gpt-oss-20b",
            "xai/grok-4-fast-non-reasoning",
        ]
    ),
    "medium": RouteSettings(
        models=[
            "anthropic/claude-sonnet-5-5",
            "openai/gpt-4o",
            "gemini/gemini-3.8-flash",
            "mistral/mistral-medium-latest",
            "deepseek/deepseek-v4-pro",
            "groq/openai/gpt-oss-120b",
            "xai/grok-4.7",
        ]
    ),
    "complex": RouteSettings(
        models=[
            "openai/gpt-4o",
            "anthropic/claude-opus-5-5",
            "gemini/gemini-2.5-pro",
            "xai/grok-4.7",
            "mistral/mistral-large-4",
            "deepseek/deepseek-v4-pro",
        ]
    ),
    "*/coder": RouteSettings(models=_CODE),
    "*/code_generation": RouteSettings(models=_CODE),
    "*/refactoring": RouteSettings(models=_CODE),
    "*/architect": RouteSettings(models=_ARCHITECTURE),
}
"""The rows that the settings' are laid over, by name."""

NO_ROUTE: Final = RouteSettings.model_construct(models=[])
"""The rules for requests that name their model: every default of a route."""


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table with its candidates."""

    name: str
    row: RouteSettings
    candidates: tuple[Candidate, ...]
    configured: bool
    """Whether it is the settings' own."""


_Place = tuple[str, str | None, str | None]  # complexity or "*", task type, agent


class Routes:
    """The default routes with the settings' rows over them."""

    def __init__(self, rows: Mapping[str, RouteSettings]) -> None:
        self._by_place: dict[_Place, Route] = {}
        self._agents: set[str] = set()
        self._task_types: set[str] = set()
        self._found: dict[_Place, Route] = {}
        for name, row in {**DEFAULT_ROUTES, **rows}.items():
            candidates = tuple(dict.fromkeys(Candidate.named(ref) for ref in row.models))
            place = _place(name)
            self._by_place[place] = Route(name, row, candidates, name in rows)
            self._task_types |= {place[1]} if place[1] is not None else set()
            self._agents |= {place[2]} if place[2] is not None else set()

    def find(self, complexity: Complexity, task_type: str | None, agent_id: str | None) -> Route:
        """The most particular row that there is."""
        task_type = task_type if task_type in self._task_types else None
        agent_id = agent_id if agent_id in self._agents else None
        wanted = (complexity, task_type, agent_id)
        if (route := self._found.get(wanted)) is None:
            places = _precedence(complexity, task_type, agent_id)
            route = self._found[wanted] = next(self._by_place[at] for at in places if at in self._by_place)
        return route

    def __iter__(self) -> Iterator[Route]:
        return iter(self._by_place.values())


def _precedence(complexity: Complexity, task_type: str | None, agent_id: str | None) -> Iterator[_Place]:
    """Rows for the agent before those for all; a task type before the complexity, both before one of them."""
    if agent_id is not None:
        if task_type is not None:
            yield complexity, task_type, agent_id
            yield "*", task_type, agent_id
        yield complexity, None, agent_id
        yield "*", None, agent_id
    if task_type is not None:
        yield complexity, task_type, None
        yield "*", task_type, None
    yield complexity, None, None


def looked_for(complexity: Complexity, task_type: str | None, agent_id: str | None) -> list[str]:
    """The names of the rows that a request looks for, the first to be found holds.

    >>> looked_for("complex", "architect", None)
    ['complex/architect', '*/architect', 'complex']
    """
    return [_name(place) for place in _precedence(complexity, task_type, agent_id)]


def _place(name: str) -> _Place:
    rest, _, agent = name.partition("@")
    complexity, _, task_type = rest.partition("/")
    return complexity, task_type or None, agent or None


def _name(place: _Place) -> str:
    complexity, task_type, agent = place
    return complexity + (f"/{task_type}" if task_type else "") + (f"@{agent}" if agent else "")
