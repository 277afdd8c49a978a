"""Nexus side, beside a call through any-llm: what it put on the wire and took off it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

MOST_OF_A_REFUSAL = 20_000


class Exchange:
    """One call's request and answer; nothing of them is shown by ``repr``."""

    __slots__ = ("body", "headers", "limit", "status", "where")

    def __init__(self, where: str, limit: int) -> None:
        self.where = where
        self.limit = limit
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = bytearray()

    def text(self) -> str:
        """The body, as far as a refusal needs it."""
        return bytes(self.body[:MOST_OF_A_REFUSAL]).decode(errors="replace")


CURRENT: ContextVar[Exchange | None] = ContextVar("pgnexus_exchange", default=None)
"""The exchange of the call that this task makes."""
