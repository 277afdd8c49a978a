"""The provider's account of its calls, read back from its file."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from chaos.provider import text_of


@dataclass
class ProviderCall:
    """One call as the provider saw it; times are those of time.monotonic()."""

    call: str
    worker: str
    vendor: str
    model: str
    mark: str
    what: str
    prompt_tokens: int
    completion_tokens: int
    began: float
    ended: float | None = None  # None: the provider was killed under it
    whole: bool = False  # the answer went out to its last byte
    told: bool = False  # its usage went out, too
    left: bool = False  # the caller closed the connection
    wait: int = 0  # seconds that it was told to wait

    @property
    def over(self) -> float:
        return self.began if self.ended is None else self.ended

    @property
    def text(self) -> str:
        return text_of(self.call, self.mark)


def read_calls(path: Path) -> list[ProviderCall]:
    """All calls in the order in which they began; a last line that a kill cut off is passed over."""
    lines: dict[str, dict[str, Any]] = defaultdict(dict)
    for text in path.read_text().split("\n")[:-1]:
        line = json.loads(text)
        lines[line["call"]] |= line
    names = {field.name for field in fields(ProviderCall)}
    calls = [
        ProviderCall(**{name: value for name, value in line.items() if name in names})
        for line in lines.values()
    ]
    return sorted(calls, key=lambda call: call.began)
