"""Nexus side, before any call: which models may serve a request, in which order, and if none, why. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from pgnexus.errors import BadRequest, NoCandidate, ProviderError
from pgnexus.messages import ApiVersion, Complexity
from pgnexus.providers.catalogue import LOCAL, LOCAL_MODEL, Vendor

_REMEMBERED = 10_000  # selections; task types and models are the callers' words, so there may be many
_CODE = ("openai/gpt-5.3-codex", "anthropic/claude-sonnet-5-5", "xai/grok-4.7", "mistral/mistral-large-4")
_ARCHITECTURE = ("anthropic/claude-opus-5-5", "openai/gpt-6.1-sol", "gemini/gemini-2.5-pro", "xai/grok-4.7")

DEFAULT_ROUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "simple": (
        "gemini/gemini-3.8-flash",
        "openai/gpt-4o-mini",
        "anthropic/claude-haiku-5-5",
        "mistral/mistral-small-latest",
        "deepseek/deepseek-v4-flash",
        "groq/openai/gpt-oss-20b",
        "xai/grok-4-fast-non-reasoning",
    ),
    "medium": (
        "anthropic/claude-sonnet-5-5",
        "openai/gpt-4o",
        "gemini/gemini-3.8-flash",
        "mistral/mistral-medium-latest",
        "deepseek/deepseek-v4-pro",
        "groq/openai/gpt-oss-120b",
        "xai/grok-4.7",
    ),
    "complex": (
        "openai/gpt-4o",
        "anthropic/claude-opus-5-5",
        "gemini/gemini-2.5-pro",
        "xai/grok-4.7",
        "mistral/mistral-large-4",
        "deepseek/deepseek-v4-pro",
    ),
    "*/coder": _CODE,
    "*/code_generation": _CODE,
    "*/refactoring": _CODE,
    "*/architect": _ARCHITECTURE,
}
"""Ordered "provider/model" by "complexity/task_type", else "*/task_type", else "complexity"."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model at a provider that may serve a request."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates in order; when there is none, ``refusal`` says why."""

    candidates: tuple[Candidate, ...] = ()
    refusal: ProviderError | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of a model beside an answer."""

    vision: bool = False
    api: ApiVersion | None = None

    def unmet(self, vendor: Vendor, model: str) -> str | None:
        if self.vision and not vendor.sees(model):
            return "takes no images"
        if self.api is not None and self.api not in vendor.speaks(model):
            return f"does not speak the {self.api} API"
        return None


class Selector:
    """The table of routes and vendors, with ``usable`` naming the vendors that can be asked."""

    def __init__(
        self,
        vendors: Mapping[str, Vendor],
        usable: Collection[str],
        routes: Mapping[str, Collection[str]],
        *,
        local_model: bool = True,
        default_provider: str | None = None,
    ) -> None:
        self._vendors = vendors
        self._usable = usable
        self._routes: dict[str, tuple[Candidate, ...]] = {
            name: tuple(Candidate(*ref.split("/", 1)) for ref in refs)
            for name, refs in {**DEFAULT_ROUTES, **routes}.items()
        }
        self._local_model = local_model
        self._default_provider = default_provider
        self._chosen: dict[tuple[Complexity, str | None, str, str, Needs], Selection] = {}

    def select(
        self, complexity: Complexity, task_type: str | None, model: str, provider: str, needs: Needs
    ) -> Selection:
        """The candidates for a request; ``model`` and ``provider`` may be "auto"."""
        asked = (complexity, task_type, model, provider, needs)
        selection = self._chosen.get(asked)
        if selection is None:
            selection = self._choose(*asked)
            if selection.candidates and len(self._chosen) < _REMEMBERED:
                self._chosen[asked] = selection
        return selection

    def _choose(
        self, complexity: Complexity, task_type: str | None, model: str, provider: str, needs: Needs
    ) -> Selection:
        if self._default_provider is not None:
            provider = self._default_provider
        if provider == "auto" and "/" in model and model.split("/", 1)[0] in self._vendors:
            provider, model = model.split("/", 1)
        elif provider != "auto":
            model = model.removeprefix(f"{provider}/")
        if provider != "auto":
            return self._named_provider(complexity, task_type, model, provider, needs)
        if model != "auto":
            return self._named_model(model, needs)
        return self._routed(complexity, task_type, needs)

    def route(self, complexity: Complexity, task_type: str | None) -> tuple[Candidate, ...]:
        """The row of the table for a complexity and a task type, the most particular one that exists."""
        for name in (f"{complexity}/{task_type}", f"*/{task_type}", complexity):
            if name in self._routes:
                return self._routes[name]
        return ()

    def why_unusable(self, name: str) -> str | None:
        """Why the provider cannot be asked, and what to do; None when it can."""
        if name in self._usable:
            return None
        vendor = self._vendors.get(name)
        if vendor is None:
            known = ", ".join(self._vendors)
            return f"there is no provider {name!r} (or it is switched off); known: {known}"
        return f"provider {name} has no key: set {' or '.join(vendor.api_key_env)} where the nexus runs"

    def _named_provider(
        self, complexity: Complexity, task_type: str | None, model: str, provider: str, needs: Needs
    ) -> Selection:
        if reason := self.why_unusable(provider):
            return _refused(f"model {model}: {reason}")
        vendor = self._vendors[provider]
        if model == "auto":
            ours = [c.model for c in self.route(complexity, task_type) if c.provider == provider]
            usual = vendor.models or tuple(c.model for c in self.route(complexity, task_type)[:1])
            if not ours and not vendor.models and provider != self._default_provider:
                return _refused(
                    f"provider {provider} lists no models: name one (providers.{provider}.models)"
                )
            candidates = [Candidate(provider, name) for name in dict.fromkeys((*ours, *usual[:1]))]
            return self._filtered(candidates, needs, f"provider {provider}")
        if not vendor.serves_others and model not in vendor.models:
            return _refused(f"model {model}: provider {provider} serves only {', '.join(vendor.models)}")
        return self._filtered([Candidate(provider, model)], needs, f"model {provider}/{model}")

    def _named_model(self, model: str, needs: Needs) -> Selection:
        owners = [name for name, vendor in self._vendors.items() if vendor.has_model(model)]
        if not owners:
            return _refused(f'model {model}: no provider is known to serve it; write "provider/model"')
        candidates = [Candidate(name, model) for name in owners if name in self._usable]
        if not candidates:
            reasons = "; ".join(reason for name in owners if (reason := self.why_unusable(name)))
            return _refused(f"model {model}: {reasons}")
        return self._filtered(candidates, needs, f"model {model}")

    def _routed(self, complexity: Complexity, task_type: str | None, needs: Needs) -> Selection:
        route = self.route(complexity, task_type)
        candidates = [c for c in route if c.provider in self._usable]
        if not candidates:  # none of the route's vendors: any other that somebody gave us a key or a row for
            candidates = [
                Candidate(name, vendor.models[0])
                for name, vendor in self._vendors.items()
                if name in self._usable and vendor.models and (vendor.needs_key or vendor.configured)
            ]
        if not candidates and self._local_model and LOCAL in self._usable:
            candidates = [Candidate(LOCAL, LOCAL_MODEL)]
        if not candidates:
            keys = ", ".join(
                dict.fromkeys(self._key_of(c.provider) for c in route if c.provider in self._vendors)
            )
            return _refused(
                f"complexity {complexity}: no provider can be asked; set one of {keys} where the nexus runs"
            )
        return self._filtered(candidates, needs, f"complexity {complexity}")

    def _filtered(self, candidates: list[Candidate], needs: Needs, asked: str) -> Selection:
        unmet = {c: needs.unmet(self._vendors[c.provider], c.model) for c in candidates}
        fit = tuple(c for c in candidates if unmet[c] is None)
        if fit:
            return Selection(fit)
        reasons = "; ".join(f"{c} {reason}" for c, reason in unmet.items())
        return Selection(refusal=BadRequest(f"{asked}: {reasons}"))

    def _key_of(self, provider: str) -> str:
        return " or ".join(self._vendors[provider].api_key_env) or f"providers.{provider}"


def _refused(reason: str) -> Selection:
    return Selection(refusal=NoCandidate(reason))
