"""The chaos runs' own SQL, by name: sql/<name>.sql."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_SQL = Path(__file__).parent / "sql"


@cache
def load(name: str) -> str:
    """The text of one file."""
    return (_SQL / f"{name}.sql").read_text()
