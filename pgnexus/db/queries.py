"""Under every step of a request: the SQL it runs, one verb a file in sql/queries."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def load(name: str) -> str:
    """The text of ``sql/queries/<name>.sql``; FileNotFoundError when there is none.

    >>> "pg_notify" in load("notify")
    True
    """
    return files("pgnexus.db").joinpath("sql", "queries", f"{name}.sql").read_text(encoding="utf-8")
