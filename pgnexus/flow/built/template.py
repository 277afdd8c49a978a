"""In flows built at run time: texts with placeholders, ``{step}``, ``{step.field}``, ``{element}``, ``{input}``.

Other braces are left alone, so that JSON may stand in a prompt; ``{{word}}`` gives ``{word}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLACEHOLDER = re.compile(r"\{\{([a-zA-Z_]\w*(?:\.\w+)*)\}\}|\{([a-zA-Z_]\w*(?:\.\w+)*)\}")


def names_in(value: Any) -> Iterator[str]:
    """What the placeholders in a JSON value's texts refer to, without fields.

    >>> list(names_in({"url": "{site.url}/a", "n": [1, "{input}"]}))
    ['site', 'input']
    """
    if isinstance(value, str):
        for found in _PLACEHOLDER.finditer(value):
            if found[2]:
                yield found[2].split(".")[0]
    elif isinstance(value, dict):
        for item in value.values():
            yield from names_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from names_in(item)


def whole_name(value: Any) -> str | None:
    """What a text refers to that is one placeholder and nothing else.

    >>> whole_name("{pages.0}"), whole_name("all {pages}")
    ('pages', None)
    """
    found = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    return found[2].split(".")[0] if found and found[2] else None


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """A JSON value with its placeholders filled: a text that is one placeholder becomes the value itself.

    What is missing in ``values``, or has no such field, is None, and nothing inside a text.

    >>> fill({"all": "{pages}", "say": "{pages.0} of {site}"}, {"pages": ["a", "b"], "site": "x"})
    {'all': ['a', 'b'], 'say': 'a of x'}
    """
    if isinstance(value, str):
        whole = _PLACEHOLDER.fullmatch(value)
        return _look_up(whole[2], values) if whole and whole[2] else text_of(value, values)
    if isinstance(value, dict):
        return {key: fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, values) for item in value]
    return value


def text_of(template: str, values: Mapping[str, Any]) -> str:
    """A text with its placeholders filled; what is no text stands in it as JSON.

    >>> text_of("Sum up {notes}, not {{notes}}", {"notes": ["a"]})
    'Sum up ["a"], not {notes}'
    """

    def one(found: re.Match[str]) -> str:
        if found[1]:
            return f"{{{found[1]}}}"
        value = _look_up(found[2], values)
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _PLACEHOLDER.sub(one, template)


def _look_up(path: str, values: Mapping[str, Any]) -> Any:
    name, *fields = path.split(".")
    value = values.get(name)
    for field in fields:
        if isinstance(value, dict):
            value = value.get(field)
        elif isinstance(value, list) and field.isdigit():
            value = value[int(field)] if int(field) < len(value) else None
        else:
            return None
    return value
