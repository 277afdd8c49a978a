"""Nexus side: the vendors, their wires, the local model and the prices. Knows no database."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pgnexus.errors import InvalidSettings
from pgnexus.providers import keys
from pgnexus.providers.anyllm.wire import AnyLLMWire
from pgnexus.providers.catalogue import LOCAL, catalogue
from pgnexus.providers.provider import Completion, Provider
from pgnexus.settings import Settings

__all__ = ["Completion", "Provider", "build_providers"]


def build_providers(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, Provider]:
    """Every vendor that can be asked, by name: those with a key, those that need none, less those whose SDK is missing.

    Nothing is connected, started or, of any-llm and the SDKs, imported before the first call. Raises
    `InvalidSettings` for a key that cannot be read, and when the extra that carries the wires is not installed.
    """
    try:  # an extra: the caller's side needs none of it
        import genai_prices  # noqa: F401, PLC0415 - now, and not under the first answer

        from pgnexus.providers.http import HttpClient  # noqa: PLC0415
        from pgnexus.providers.local_model import LocalModel  # noqa: PLC0415
        from pgnexus.providers.openai.wire import OpenAIWire  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidSettings(
            f"this process cannot call providers, {error.name} is missing: pip install 'pgnexus[providers]'"
        ) from error
    http = HttpClient()
    limit = settings.max_message_bytes
    providers: dict[str, Provider] = {}
    for name, vendor in catalogue(settings).items():
        if name == LOCAL:
            providers[name] = LocalModel(vendor, http, path=settings.local_model_path, max_bytes=limit)
            continue
        key = keys.find(vendor, environ)
        if (key is None and vendor.needs_key) or vendor.missing is not None:
            continue
        value = None if key is None else key.value
        if vendor.wire == "any-llm":
            providers[name] = AnyLLMWire(vendor, value, max_bytes=limit)
        else:
            providers[name] = OpenAIWire(vendor, value, http, max_bytes=limit)
    return providers
