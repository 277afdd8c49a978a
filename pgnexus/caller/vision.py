"""Before T1: an image for a model that sees none is refused here, where the catalogue or a live nexus tells."""

from __future__ import annotations

from collections.abc import Iterable

from pgnexus.errors import InvalidRequest
from pgnexus.messages import LLMRequest, ModelInfo
from pgnexus.providers.catalogue import Vendor, catalogue
from pgnexus.settings import Settings


def check_named(request: LLMRequest, settings: Settings) -> None:
    """Raise `InvalidRequest` when the model or provider that the request names takes no images."""
    if not request.has_images:
        return
    vendors = catalogue(settings)
    provider, model = request.provider, request.model
    if provider == "auto" and "/" in model and model.split("/", 1)[0] in vendors:
        provider, model = model.split("/", 1)
    candidates = _owners(vendors, provider, model.removeprefix(f"{provider}/"))
    if candidates and not any(vendor.sees(name) for vendor, name in candidates):
        asked = f"model {model}" if model != "auto" else f"provider {provider}"
        raise InvalidRequest(f"request {request.request_id}: {asked} takes no images")


def check_usable(models: Iterable[ModelInfo], settings: Settings) -> None:
    """Raise `InvalidRequest` when of all models that can be used now none takes images."""
    vendors = catalogue(settings)
    usable = [info for info in models if info.usable]
    if usable and not any(
        info.provider not in vendors or vendors[info.provider].sees(info.model) for info in usable
    ):
        names = ", ".join(f"{info.provider}/{info.model}" for info in usable[:5])
        raise InvalidRequest(
            f"the request has an image, and no model that can be used now takes one: {names}"
        )


def _owners(vendors: dict[str, Vendor], provider: str, model: str) -> list[tuple[Vendor, str]]:
    """Who could be meant, as far as we know; nobody when the request names nothing, or what we do not know."""
    if provider != "auto":
        vendor = vendors.get(provider)
        if vendor is None:
            return []
        return [(vendor, name) for name in ((model,) if model != "auto" else vendor.models)]
    return [(vendor, model) for vendor in vendors.values() if model != "auto" and vendor.has_model(model)]
