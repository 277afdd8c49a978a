"""Writes docs/settings.md out of `pgnexus.settings`: python tools/settings_reference.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pgnexus import settings
from pgnexus.policy import ModelSettings, ProviderSettings, RouteSettings
from pgnexus.providers.catalogue import catalogue
from pgnexus.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

_HEAD = """# Settings

Written by `python tools/settings_reference.py` out of `pgnexus/settings.py`; a test compares the two.

A setting comes from the strongest of these sources that names it, the weakest first:

1. its default;
2. `pgnexus.toml` in the working directory, or the file that `PGNEXUS_CONFIG` names;
3. its environment variable;
4. an argument of `pgnexus.open(...)` or `Settings.load(...)`, or an option of the command.

All times are in seconds. A value that does not fit is an error that names the setting. So is a name that does not
exist, in the file or among the arguments; an environment variable that is no setting's is passed over.

API keys are no settings. Each provider reads its key from the environment variable in
[the table of providers](#providers) or from a file ([how](providers.md#keys)), and only where the nexus side runs.
"""

_MIDDLE = """## Providers

Each vendor has a row of its own under `providers`. What is written there is laid over the built-in row of that name; a
new name with a `base_url` adds a vendor that speaks OpenAI's wire.

```toml
[providers.openai]
timeout = 120

[providers.house]                     # a server of our own
base_url = "http://llm.internal:8000/v1"
models = ["our-model"]

[models."house/our-model"]
context_length = 32768
vision = false

[routes]
simple = ["house/our-model", "openai/gpt-4o-mini"]
"complex/architect" = ["anthropic/claude-opus-5-5"]

[routes."*@reviewer"]                 # whatever the agent "reviewer" asks
models = ["openai/gpt-4o", "anthropic/claude-sonnet-5-5"]
order = "price"
```

In the environment the parts of a name are joined by two underscores, or a whole group is one JSON object:

```sh
PGNEXUS_PROVIDERS__OPENAI__BASE_URL=http://gateway.internal/v1
PGNEXUS_ROUTES='{"simple": ["openai/gpt-4o-mini"]}'
```

"""


_ROUTES = """## Routes

A route is a list of models, each `"provider/model"`, or a row of `routes` with these fields; in the environment the
rows are one JSON object, `PGNEXUS_ROUTES`. Its name says for which requests it is: [routing](routing.md#routes) has
the order in which names are looked for, and the meaning of each order (`route`, `price`, `latency`, `success_rate`).
Rows of the settings replace the built-in ones of the same name.

"""
_MODELS = """## Models

What is known of a model: a row of `models` by `"provider/model"`, laid over what the catalogue and the price list
know; in the environment the rows are one JSON object, `PGNEXUS_MODELS`. What nobody knows rules no model out.

"""


def page() -> str:
    """The whole page."""
    rows = "\n\n".join(
        f"## {title[0].upper()}{title[1:]}\n\n{_table(Settings, names, 'PGNEXUS_')}"
        for title, names in _groups().items()
    )
    fields = _table(ProviderSettings, list(ProviderSettings.model_fields), "PGNEXUS_PROVIDERS__NAME__")
    routes = f"{_ROUTES}{_fields(RouteSettings)}\n"
    models = f"{_MODELS}{_fields(ModelSettings)}\n"
    return f"{_HEAD}\n{rows}\n\n{_MIDDLE}{fields}\n\n{_vendors()}\n{routes}\n{models}"


def _groups() -> dict[str, list[str]]:
    """The names of the settings under the comments that group them in the source."""
    source = Path(settings.__file__).read_text(encoding="utf-8").split("class Settings(", 1)[1]
    groups: dict[str, list[str]] = {}
    for line in source.splitlines():
        if found := re.match(r"    # (\w[\w ]*)$", line):
            groups[found[1]] = []
        elif (found := re.match(r"    (\w+):", line)) and found[1] in Settings.model_fields:
            groups[next(reversed(groups))].append(found[1])
    return groups


def _table(model: type[BaseModel], names: list[str], prefix: str) -> str:
    lines = ["| setting | environment | default | meaning |", "| --- | --- | --- | --- |"]
    for name in names:
        field = model.model_fields[name]
        lines.append(
            f"| `{name}` | `{prefix}{name.upper()}` | {_default(field)} | {field.description}{_bounds(field)} |"
        )
    return "\n".join(lines)


def _fields(model: type[BaseModel]) -> str:
    """The fields of a row that is named as the user likes."""
    lines = ["| field | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field)
        lines.append(f"| `{name}` | {default} | {field.description}{_bounds(field)} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return "empty" if value in ({}, []) else f"`{value}`"


def _bounds(field: FieldInfo) -> str:
    words = {"gt": "more than", "ge": "at least", "le": "at most"}
    found = [f"{words[k]} {v:g}" for m in field.metadata for k, v in _limits(m).items() if k in words]
    return f" ({', '.join(found)})" if found else ""


def _limits(constraint: Any) -> dict[str, float]:
    return {name: getattr(constraint, name) for name in ("gt", "ge", "le") if hasattr(constraint, name)}


def _vendors() -> str:
    lines = ["| provider | key in | base_url |", "| --- | --- | --- |"]
    for name, vendor in catalogue(Settings.model_construct(**_defaults())).items():
        keys = " or ".join(f"`{key}`" for key in vendor.api_key_env) or "needs none"
        needed = "" if vendor.needs_key or not vendor.api_key_env else " (needs none)"
        elsewhere = "a process on this machine" if vendor.any_llm is None else "its own API, through any-llm"
        where = f"`{vendor.base_url}`" if vendor.base_url else elsewhere
        lines.append(f"| `{name}` | {keys}{needed} | {where} |")
    return "The built-in rows:\n\n" + "\n".join(lines) + "\n"


def _defaults() -> dict[str, Any]:
    """Nothing of this machine's environment or files gets into the page."""
    return {
        n: f.get_default(call_default_factory=True, validated_data={})
        for n, f in Settings.model_fields.items()
    }


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
