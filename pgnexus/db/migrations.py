"""Before the first request: the schema's files, and what of them a database has had."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pgnexus.errors import SchemaMismatch

SQL_DIR = Path(__file__).parent / "sql"


@dataclass(frozen=True)
class Migration:
    """One file ``NNNN_name.sql``; once released it never changes."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def mark(self) -> str:
        return f"{self.name} {self.checksum}"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def schema_files(sql_dir: Path = SQL_DIR) -> list[Path]:
    """The files that make a fresh schema, in their order."""
    return sorted((sql_dir / "schema").glob("*/*.sql"))


def migrations(sql_dir: Path = SQL_DIR) -> list[Migration]:
    """The migrations in the order of their numbers, which are 1, 2, 3, …"""
    found = []
    for number, path in enumerate(sorted((sql_dir / "migrations").glob("*.sql")), start=1):
        if not re.fullmatch(rf"{number:04d}_[a-z0-9_]+", path.stem):
            raise SchemaMismatch(
                f"{path.name}: migrations are numbered without gaps; expected {number:04d}_…"
            )
        found.append(Migration(number, path.stem, read(path)))
    return found


def missing(have: str | None, known: list[Migration]) -> list[Migration]:
    """Those of ``known`` that a database with the marks ``have`` lacks.

    Raises `SchemaMismatch` when it has others: it is newer, or of another build.
    """
    marks = have.split(", ") if have else []
    for migration, mark in zip(known, marks, strict=False):
        if mark != migration.mark:
            raise SchemaMismatch(
                f"the database's schema ({mark.split()[0]}) comes from another build of pgnexus: "
                "use the pgnexus it was made by, or a fresh database"
            )
    if len(marks) > len(known):
        raise SchemaMismatch(
            f"the database's schema is newer than this pgnexus ({marks[-1].split()[0]}): upgrade pgnexus"
        )
    return known[len(marks) :]


@cache
def pgmq_sql() -> str:
    """pgmq's own SQL from its package, which need not be imported for it."""
    spec = find_spec("pgmq")
    for root in (spec.submodule_search_locations or []) if spec else []:
        return read(Path(root) / "sql" / "pgmq.sql")
    raise SchemaMismatch("the package pgmq is not installed: pip install pgmq==1.1.4")
