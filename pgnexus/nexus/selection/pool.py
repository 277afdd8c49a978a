"""Nexus side, the first half of the choice of a model: who is considered, as written, and who of them is out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pgnexus.nexus.selection.candidate import Candidate
from pgnexus.nexus.selection.needs import Needs
from pgnexus.nexus.selection.routes import Route
from pgnexus.nexus.selection.wanted import Wanted
from pgnexus.providers.catalogue import LOCAL, LOCAL_MODEL, Vendor
from pgnexus.providers.models import ModelCard, card
from pgnexus.settings import Settings

_REMEMBERED: Final = 10_000  # pools; models are the callers' words, so there may be many


@dataclass(frozen=True, slots=True)
class Pool:
    """Who is considered, as written, and why those who are out are; the prompt's length aside.

    ``instead`` are those who are asked because nobody on the route can be; ``routed`` says that the rules of the
    route hold. ``fit`` are all who are not out, ``shortest`` is the shortest context that is known of them.
    """

    candidates: tuple[Candidate, ...] = ()
    origin: str = ""
    instead: tuple[Candidate, ...] = ()
    out: Mapping[Candidate, str] = field(default_factory=dict)
    refusal: str | None = None
    routed: bool = False
    fit: tuple[Candidate, ...] = ()
    shortest: int | None = None

    @property
    def all(self) -> tuple[Candidate, ...]:
        return self.candidates + self.instead

    def origin_of(self, candidate: Candidate) -> str:
        return f"instead of {self.origin}" if candidate in self.instead else self.origin


class Pools:
    """Finds who is considered for a request, with ``usable`` naming the vendors that can be asked."""

    def __init__(self, settings: Settings, vendors: Mapping[str, Vendor], usable: Collection[str]) -> None:
        self._settings = settings
        self._vendors = vendors
        self._usable = usable
        self._known: dict[tuple[str, str, str, Needs], Pool] = {}

    def find(self, wanted: Wanted, route: Route) -> Pool:
        """Those who are considered, with the reason for each that cannot serve it, the prompt's length aside."""
        # the place of a request is that of its route: task types and agents are the callers' words
        needs = replace(wanted.needs, prompt_tokens=0) if wanted.needs.prompt_tokens else wanted.needs
        place = (route.name, wanted.model, wanted.provider, needs)
        pool = self._known.get(place)
        if pool is None:
            pool = self._with_needs(self._pool(wanted, route), needs)
            if pool.refusal is None and len(self._known) < _REMEMBERED:
                self._known[place] = pool
        return pool

    def _with_needs(self, pool: Pool, needs: Needs) -> Pool:
        out = dict(pool.out)
        for candidate in pool.all:
            if candidate not in out and (why := self._unmet(candidate, needs)):
                out[candidate] = why
        fit = tuple(candidate for candidate in pool.all if candidate not in out)
        lengths = [length for candidate in fit if (length := self.context_length(candidate))]
        return replace(pool, out=out, fit=fit, shortest=min(lengths, default=None))

    def _unmet(self, candidate: Candidate, needs: Needs) -> str | None:
        vendor = self._vendors[candidate.provider]
        return needs.unmet(vendor, card(vendor, candidate.model, self._settings))

    def context_length(self, candidate: Candidate) -> int | None:
        known = self.card(candidate)
        return None if known is None else known.context_length

    def card(self, candidate: Candidate) -> ModelCard | None:
        """What is known of a candidate's model; None when there is no such vendor."""
        vendor = self._vendors.get(candidate.provider)
        return None if vendor is None else card(vendor, candidate.model, self._settings)

    def why_unusable(self, name: str) -> str | None:
        """Why the provider cannot be asked, and what to do; None when it can."""
        if (row := self._settings.providers.get(name)) is not None and not row.enabled:
            return f"provider {name} is switched off (providers.{name}.enabled)"
        if name in self._usable:
            return None
        vendor = self._vendors.get(name)
        if vendor is None:
            return f"there is no provider {name!r}; known: {', '.join(self._vendors)}"
        if vendor.missing is not None:
            return f"provider {name} cannot be asked, {vendor.missing}"
        return f"provider {name} has no key: set {' or '.join(vendor.api_key_env)} where the nexus runs"

    def others(self, pool: Pool) -> Iterator[tuple[str, str]]:
        """The vendors that were not considered, each with the reason."""
        considered = {candidate.provider for candidate in pool.all}
        off = [name for name, row in self._settings.providers.items() if not row.enabled]
        for name in dict.fromkeys((*self._vendors, *off)):
            if name not in considered:
                yield (
                    name,
                    self.why_unusable(name)
                    or ("not on this route" if pool.routed else "another one was named"),
                )

    def _pool(self, wanted: Wanted, route: Route) -> Pool:
        model, provider = wanted.model, wanted.provider
        if self._settings.default_provider is not None:
            provider = self._settings.default_provider
        if provider == "auto" and "/" in model and model.split("/", 1)[0] in self._vendors:
            provider, model = model.split("/", 1)
        elif provider != "auto":
            model = model.removeprefix(f"{provider}/")
        if provider == "auto":
            return self._routed(route) if model == "auto" else self._named_model(model)
        if reason := self.why_unusable(provider):
            return Pool(refusal=reason)
        return self._named_provider(provider, route) if model == "auto" else self._named_both(provider, model)

    def _named_both(self, provider: str, model: str) -> Pool:
        vendor = self._vendors[provider]
        if not vendor.serves_others and model not in vendor.models:
            return Pool(refusal=f"provider {provider} serves only {', '.join(vendor.models)}")
        return Pool((Candidate(provider, model),), "it was named")

    def _named_provider(self, provider: str, route: Route) -> Pool:
        vendor = self._vendors[provider]
        ours = [candidate.model for candidate in route.candidates if candidate.provider == provider]
        usual = vendor.models or tuple(candidate.model for candidate in route.candidates[:1])
        if not ours and not vendor.models and provider != self._settings.default_provider:
            return Pool(refusal=f"it lists no models: name one (providers.{provider}.models)")
        candidates = tuple(Candidate(provider, name) for name in dict.fromkeys((*ours, *usual[:1])))
        return Pool(candidates, "its provider was named", routed=True)

    def _named_model(self, model: str) -> Pool:
        owners = [name for name, vendor in self._vendors.items() if vendor.has_model(model)]
        if not owners:
            return Pool(refusal='no provider is known to serve it; write "provider/model"')
        out = {Candidate(name, model): why for name in owners if (why := self.why_unusable(name))}
        candidates = tuple(Candidate(name, model) for name in owners)
        nobody = "; ".join(out.values()) if len(out) == len(owners) else None
        return Pool(candidates, "it was named", out=out, refusal=nobody)

    def _routed(self, route: Route) -> Pool:
        origin = f"route {route.name}"
        out = {c: why for c in route.candidates if (why := self.why_unusable(c.provider))}
        if len(out) < len(route.candidates):
            return Pool(route.candidates, origin, out=out, routed=True)
        # none of the route's vendors: any other that somebody gave us a key or a row for
        others = tuple(
            Candidate(name, vendor.models[0])
            for name, vendor in self._vendors.items()
            if name in self._usable and vendor.models and (vendor.needs_key or vendor.configured)
        )
        if not others and self._settings.local_model and LOCAL in self._usable:
            others = (Candidate(LOCAL, LOCAL_MODEL),)
        if others:
            return Pool(route.candidates, origin, others, out, routed=True)
        known = [c.provider for c in route.candidates if c.provider in self._vendors]
        keys = ", ".join(dict.fromkeys(map(self._key_of, known)))
        nobody = f"no provider can be asked; set one of {keys} where the nexus runs"
        return Pool(route.candidates, origin, out=out, routed=True, refusal=nobody)

    def _key_of(self, provider: str) -> str:
        return " or ".join(self._vendors[provider].api_key_env) or f"providers.{provider}"
