"""Nexus side, once at the start: the vendors' API keys, from the environment or from files.

A key is handed to its vendor's wire and to nobody else. What is said of one that cannot be used names the
setting and the path, never what was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pgnexus.errors import InvalidSettings
from pgnexus.providers.catalogue import Vendor

_LONGEST = 64 * 1024  # bytes of a file; no key is as long, and a wrong path may lead to something endless


class Key(NamedTuple):
    """A vendor's key and where it was found; shown without the key itself."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"Key({self.source})"


def find(vendor: Vendor, environ: Mapping[str, str]) -> Key | None:
    """The vendor's key, stripped; None when it has none.

    ``providers.NAME.api_key_file`` comes before the environment, and a variable before the one of that name with
    ``_FILE`` behind it, which names a file. Blank counts as unset. Raises `InvalidSettings` for a file that
    cannot be read or is empty, and for a key that no HTTP header can hold.

    >>> find(Vendor("ours", "http://host/v1", ("OUR_KEY",)), {"OUR_KEY": " secret "})
    Key(OUR_KEY)
    """
    key = _found(vendor, environ)
    fault = None if key is None or _can_be_sent(key.value) else key.source
    if fault is not None:
        key = None  # a traceback may show what this function holds
        raise InvalidSettings(f"{fault}: the key holds characters that no HTTP header may hold")
    return key


def source(vendor: Vendor, environ: Mapping[str, str]) -> str | None:
    """Where the vendor's key would come from, without reading any file; None when it has none.

    >>> source(Vendor("ours", "http://host/v1", ("OUR_KEY",)), {"OUR_KEY_FILE": "/run/secrets/ours"})
    'OUR_KEY_FILE'
    """
    if vendor.api_key_file is not None:
        return f"providers.{vendor.name}.api_key_file"
    names = (f"{name}{suffix}" for name in vendor.api_key_env for suffix in ("", "_FILE"))
    return next((name for name in names if environ.get(name, "").strip()), None)


def scope(vendor: Vendor, environ: Mapping[str, str]) -> str | None:
    """What stands for the vendor's key in a scope ``key:…``: its variable, also when that names a file.

    >>> scope(Vendor("ours", "http://host/v1", ("OUR_KEY",)), {"OUR_KEY_FILE": "/run/secrets/ours"})
    'OUR_KEY'
    """
    found = source(vendor, environ)
    return None if found is None else found.removesuffix("_FILE")


def _found(vendor: Vendor, environ: Mapping[str, str]) -> Key | None:
    setting = source(vendor, environ)
    if setting is None:
        return None
    if vendor.api_key_file is not None:
        return _read(vendor.api_key_file, setting)
    value = environ[setting].strip()
    return Key(value, setting) if setting in vendor.api_key_env else _read(Path(value), setting)


def _read(path: Path, setting: str) -> Key:
    value, fault = _content(path)
    if fault is not None:
        raise InvalidSettings(f"{setting}: {path}: {fault}")
    return Key(value, setting)


def _content(path: Path) -> tuple[str, str | None]:
    """What a file holds, or why it is no key; raises nothing, so that no traceback can show the content."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST + 1)
        value = raw.decode().strip()
    except OSError as error:
        return "", (error.strerror or type(error).__name__)
    except ValueError:
        return "", "is not text"
    if len(raw) > _LONGEST:
        return "", f"is larger than {_LONGEST} bytes, so it is no key"
    return (value, None) if value else ("", "is empty")


def _can_be_sent(value: str) -> bool:
    return value.isascii() and value.isprintable()
