"""Who takes part: one row a peer. What a peer needs is pinned here and installed in an environment of its own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Final


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer: its packages, and where its committed answers are counted (a file of peers/sql)."""

    name: str
    requirements: tuple[str, ...]
    program: str
    count: str
    told: bool  # whether a NOTIFY names what is stored; else the count is asked for


PEERS: Final = (
    Peer(
        name="pgqueuer",
        requirements=("pgqueuer[asyncpg]==1.6.0", "uvloop==0.23.0"),
        program="with_pgqueuer",
        count="answers_count",
        told=True,
    ),
    Peer(
        name="procrastinate",
        requirements=("procrastinate==3.10.0",),
        program="with_procrastinate",
        count="answers_count",
        told=True,
    ),
    Peer(
        name="dbos",
        requirements=("dbos==3.4.0",),
        program="with_dbos",
        count="dbos_count",
        told=False,
    ),
    Peer(
        name="awa",
        requirements=("awa-pg==0.6.9",),
        program="with_awa",
        count="answers_count",
        told=True,
    ),
)


def shared_requirements() -> tuple[str, ...]:
    """The HTTP client and the driver in every environment: the versions that pgnexus itself runs on."""
    return f"aiohttp=={version('aiohttp')}", f"psycopg[binary]=={version('psycopg')}"
