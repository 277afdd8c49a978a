"""Nexus side, before any call: the candidates for a request in order, or why there is none. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pgnexus.errors import BadRequest, ContextTooLong, NoCandidate, ProviderError
from pgnexus.nexus.selection.candidate import Candidate
from pgnexus.nexus.selection.conditions import UNKNOWN, Conditions, ordered
from pgnexus.nexus.selection.explanation import Considered, Explanation, value_in_words
from pgnexus.nexus.selection.needs import Needs
from pgnexus.nexus.selection.pool import Pool, Pools
from pgnexus.nexus.selection.routes import NO_ROUTE, Routes, looked_for
from pgnexus.nexus.selection.wanted import Wanted
from pgnexus.policy import RouteSettings
from pgnexus.providers.catalogue import Vendor
from pgnexus.settings import Settings

_NOTHING_KNOWN: Final[Conditions] = MappingProxyType({})
_NOBODY: Final[Mapping[Candidate, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates in order; when there is none, ``refusal`` says why.

    ``route`` has the rules that hold for the request, ``name`` is the route's; a request that names its model is
    under no route's rules, but under the defaults.
    """

    candidates: tuple[Candidate, ...] = ()
    refusal: ProviderError | None = None
    route: RouteSettings = NO_ROUTE
    name: str = ""


class Selector:
    """The table of routes and vendors, with ``usable`` naming the vendors that can be asked."""

    def __init__(self, settings: Settings, vendors: Mapping[str, Vendor], usable: Collection[str]) -> None:
        self._usable = usable
        self._routes = Routes(settings.routes)
        self._pools = Pools(settings, vendors, usable)

    @property
    def by_standing(self) -> bool:
        """Whether any route orders its candidates by how they do, so that somebody has to watch that."""
        return any(route.row.order in ("latency", "success_rate") for route in self._routes)

    def why_unusable(self, provider: str) -> str | None:
        """Why the provider cannot be asked, and what to do; None when it can."""
        return self._pools.why_unusable(provider)

    def select(
        self, wanted: Wanted, conditions: Conditions = _NOTHING_KNOWN, *, explore: bool = False
    ) -> Selection:
        """The candidates for a request.

        One whose breaker is open keeps its place: it may be probed by the time its turn comes. To ``explore`` is to
        put those first of which nothing is known, where the route orders by how they do: else they would stay last
        for ever, and nobody would find out.
        """
        route = self._routes.find(wanted.complexity, wanted.task_type, wanted.agent_id)
        pool = self._pools.find(wanted, route)
        row, name = (route.row, route.name) if pool.routed else (NO_ROUTE, "")
        if pool.refusal is not None:
            return Selection((), NoCandidate(f"{wanted}: {pool.refusal}"), row, name)
        if not pool.fit:
            unmet = "; ".join(f"{c} {why}" for c, why in pool.out.items() if c.provider in self._usable)
            return Selection((), BadRequest(f"{wanted}: {unmet}"), row, name)
        fit = ordered(pool.fit, row.order, self._pools.card, conditions, explore=explore)
        too_long = self._too_long(wanted.needs, pool)
        left = tuple(candidate for candidate in fit if candidate not in too_long) if too_long else fit
        if left and (row.longer_context or left[0] == fit[0]):
            return Selection(left, None, row, name)
        reasons = "; ".join(f"{c} {too_long[c]}" for c in fit if c in too_long)
        if left:
            reasons = f"{fit[0]} {too_long[fit[0]]}, and route {name} has no other take its place"
        return Selection((), ContextTooLong(f"{wanted}: {reasons}"), row, name)

    def explain(
        self,
        wanted: Wanted,
        conditions: Conditions = _NOTHING_KNOWN,
        unready: Mapping[str, str] = MappingProxyType({}),
    ) -> Explanation:
        """What `select` would choose, and why each model is where it is; ``unready`` are vendors that would fail."""
        route = self._routes.find(wanted.complexity, wanted.task_type, wanted.agent_id)
        pool = self._pools.find(wanted, route)
        selection = self.select(wanted, conditions)
        return Explanation(
            complexity=wanted.complexity,
            task_type=wanted.task_type,
            agent_id=wanted.agent_id,
            looked_for=tuple(looked_for(wanted.complexity, wanted.task_type, wanted.agent_id)),
            route=selection.name,
            from_settings=pool.routed and route.configured,
            rules=selection.route,
            considered=tuple(self._considered(wanted, pool, selection, conditions, unready)),
            others=tuple(self._pools.others(pool)),
            refusal=None if selection.refusal is None else str(selection.refusal),
        )

    def _considered(
        self,
        wanted: Wanted,
        pool: Pool,
        selection: Selection,
        conditions: Conditions,
        unready: Mapping[str, str],
    ) -> Iterator[Considered]:
        """Those who would be asked now in their order, then the others as written."""
        out = {**pool.out, **self._too_long(wanted.needs, pool)}
        for candidate in selection.candidates:
            if (why := unready.get(candidate.provider)) is not None:
                out[candidate] = why
            elif (seconds := conditions.get(candidate, UNKNOWN).breaker_open) is not None:
                out[candidate] = f"its breaker is open: left alone for {seconds:.3g} s more"
        now = [candidate for candidate in selection.candidates if candidate not in out]
        rest = [candidate for candidate in pool.all if candidate not in now]
        for place, candidate in enumerate((*now, *rest), 1):
            standing = conditions.get(candidate, UNKNOWN)
            yield Considered(
                candidate,
                position=place if candidate not in rest else None,
                origin=pool.origin_of(candidate),
                value=value_in_words(selection.route.order, self._pools.card(candidate), standing),
                why_out=out.get(candidate),
            )

    def _too_long(self, needs: Needs, pool: Pool) -> Mapping[Candidate, str]:
        """Those whose context is known to be too short for the prompt."""
        if pool.shortest is None or needs.prompt_tokens <= pool.shortest:
            return _NOBODY
        contexts = {candidate: self._pools.context_length(candidate) for candidate in pool.fit}
        return {c: why for c, length in contexts.items() if (why := needs.too_long(length))}
