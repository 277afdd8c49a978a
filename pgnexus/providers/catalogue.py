"""Nexus side, read by the router and the wires: the vendors' rows, with the settings' laid over them."""

from __future__ import annotations

from dataclasses import replace

from pgnexus.errors import InvalidSettings
from pgnexus.policy import ProviderSettings
from pgnexus.providers.vendors import BUILT_IN, LOCAL, LOCAL_CONTEXT, LOCAL_MODEL, Vendor, Wire
from pgnexus.settings import Settings

__all__ = ["LOCAL", "LOCAL_CONTEXT", "LOCAL_MODEL", "Vendor", "Wire", "catalogue"]


def catalogue(settings: Settings) -> dict[str, Vendor]:
    """Every vendor that is not switched off, by name, in the order of preference.

    Raises `InvalidSettings` for a new vendor without a base URL.

    >>> catalogue(Settings())["gemini"].api_key_env
    ('GEMINI_API_KEY', 'GOOGLE_API_KEY')
    """
    rows = {vendor.name: vendor for vendor in BUILT_IN}
    for name, over in settings.providers.items():
        rows[name] = _laid_over(rows.get(name), name, over)
    return {
        name: row
        for name, row in rows.items()
        if name not in settings.providers or settings.providers[name].enabled
    }


def _laid_over(row: Vendor | None, name: str, over: ProviderSettings) -> Vendor:
    if row is None:
        row = _new(name, over)
    elif over.base_url is not None and name == LOCAL:
        raise InvalidSettings(
            f"providers.{LOCAL}.base_url: the local model has none; give the server another name"
        )
    if over.wire == "openai" and not (over.base_url or row.base_url):
        raise InvalidSettings(
            f"providers.{name}.wire: {name} does not speak OpenAI's wire; give it a base_url"
        )
    if over.wire == "any-llm" and name == LOCAL:
        raise InvalidSettings(f"providers.{LOCAL}.wire: the local model speaks OpenAI's wire")
    if over.base_url and not over.base_url.startswith(("http://", "https://")):
        raise InvalidSettings(
            f"providers.{name}.base_url: {over.base_url!r} must begin with http:// or https://"
        )
    return replace(
        _placed(row, name, over),
        api_key_env=(over.api_key_env,) if over.api_key_env else row.api_key_env,
        api_key_file=over.api_key_file,
        needs_key=row.needs_key if over.needs_key is None else over.needs_key,
        models=tuple(dict.fromkeys((*over.models, *row.models))),
        timeout=over.timeout or row.timeout,
        configured=True,
    )


def _new(name: str, over: ProviderSettings) -> Vendor:
    """A vendor that only the settings know."""
    if over.wire == "any-llm":
        return Vendor(name, "", (f"{name.upper()}_API_KEY",), any_llm=name)
    if over.base_url is None and over.enabled:
        raise InvalidSettings(f"providers.{name}.base_url: missing; pgnexus has no row for {name!r}")
    # A server that nobody named a key for is one that asks for none.
    return Vendor(name, "", needs_key=over.api_key_env is not None or over.api_key_file is not None)


def _placed(row: Vendor, name: str, over: ProviderSettings) -> Vendor:
    """Where it is and what it is asked by: a base URL without a wire is that of an OpenAI-compatible API."""
    asked_by = over.wire
    if asked_by is None and over.base_url is not None and (row.base_url or row.any_llm is None):
        asked_by = "openai"
    row = replace(row, asked_by=asked_by, any_llm=row.any_llm or (name if asked_by == "any-llm" else None))
    if over.base_url is None:
        return row
    url = over.base_url.rstrip("/")
    return replace(row, any_llm_url=url) if row.wire == "any-llm" else replace(row, base_url=url)
