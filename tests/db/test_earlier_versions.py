"""Processes of earlier versions go on after a migration: this schema understands each of their statements."""

from __future__ import annotations

import re
import subprocess

import psycopg
import pytest

from chaos.upgrade.releases import RELEASES, ROOT, Release

# Statements that make a schema, which an earlier version does not do here.
_SETUP = ("create_", "drop_", "schema_lock", "record_migration", "publish_migrations", "pgmq_")
# What cannot be prepared, and a statement whose parameters are taken for another type while they have no values.
_OTHERS = ("freeze_snapshot", "move_clock", "run_costs")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("needs the repository's history")
    return done.stdout


def statements(release: Release) -> dict[str, str]:
    """Its queries by name, with parameters as PREPARE has them."""
    folder = "pgnexus/db/sql/queries/"
    found = {}
    for path in git("ls-tree", "--name-only", release.commit, folder).split():
        names: dict[str, int] = {}
        name = path.removeprefix(folder).removesuffix(".sql")
        text = re.sub(
            r"%\((\w+)\)s",
            lambda match, names=names: f"${names.setdefault(match[1], len(names) + 1)}",
            git("show", f"{release.commit}:{path}"),
        )
        if not name.startswith((*_SETUP, *_OTHERS)):
            found[name] = text.replace("%%", "%").strip().rstrip(";")
    return found


@pytest.mark.parametrize("version", list(RELEASES))
def test_every_statement_is_understood(version: str, database_url: str) -> None:
    wrong = {}
    found = statements(RELEASES[version])
    with psycopg.connect(database_url, autocommit=True) as connection:
        for name, text in found.items():
            try:
                connection.execute(f"prepare one as {text}".encode())
                connection.execute("deallocate one")
            except psycopg.errors.IndeterminateDatatype:
                pass  # a parameter whose type only its value tells; every name was found
            except psycopg.Error as error:
                wrong[name] = str(error)
    assert len(found) > 30
    assert not wrong
