"""Before the first request: install the schema, upgrade it, and see that it fits this code."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors

from pgnexus.db.connection import Connection, connect, display, unavailable
from pgnexus.db.database import Database
from pgnexus.db.migrations import SQL_DIR, Migration, migrations, missing, pgmq_sql, read, schema_files
from pgnexus.db.queries import load
from pgnexus.errors import DatabaseError, SchemaMismatch, UnsuitableDatabase

_MIGRATE = "run `pgnexus migrate`"
_ROLES_ATTEMPTS = 5
_LOCK_ATTEMPTS = 60
_LOCK_ADVICE = "others hold locks that this needs (see pg_stat_activity for a long transaction); run it again"


async def migrate(
    url: str, *, from_migrations: bool = False, sql_dir: Path = SQL_DIR, connect_timeout: float = 5.0
) -> list[str]:
    """Bring the database's schema to this code's; the names of what was applied, none when it was there.

    Any number of processes may do so at once. A fresh database is built from schema/ in one transaction
    (with ``from_migrations`` from the migrations, which must come to the same); to an older one each
    missing migration is applied in a transaction of its own, as soon as its locks are free: for minutes it is tried
    again, so that no request waits behind it for long. Raises `SchemaMismatch` when the database is newer, and
    `DatabaseError` naming the file that failed.
    """
    db = await Database.open(url, connect_timeout=connect_timeout, pool_size=1)
    await db.close()  # the server suits us; a statement may take its time now
    known = migrations(sql_dir)
    applied: list[str] = []
    connection = await connect(url, timeout=connect_timeout, application_name="pgnexus migrate")
    try:
        while step := await _step_when_free(connection, known, from_migrations, sql_dir):
            applied += step
        if applied and (sql_dir / "roles.sql").exists():
            [(roles,)] = await _fetch(connection, "roles_exist")
            if roles:  # new objects want grants
                await _apply_roles(connection, sql_dir)
    except psycopg.Error as error:
        raise unavailable(error, url) or _fault(error, url) from error
    finally:
        await connection.close()
    return applied


async def create_roles(url: str, *, sql_dir: Path = SQL_DIR, connect_timeout: float = 5.0) -> None:
    """Create the caller's and the nexus role where missing, and grant them what is theirs."""
    connection = await connect(url, timeout=connect_timeout, application_name="pgnexus roles")
    try:
        [state] = await _fetch(connection, "schema_state")
        if not state.installed:
            raise SchemaMismatch(f"{display(url)} has no pgnexus schema: {_MIGRATE} first")
        await _apply_roles(connection, sql_dir)
    except psycopg.Error as error:
        raise unavailable(error, url) or _fault(error, url) from error
    finally:
        await connection.close()


async def verify(db: Database, *, sql_dir: Path = SQL_DIR) -> None:
    """See that the schema is there and fits this code; `SchemaMismatch` says what to run. Any role may."""
    name = display(db.url)
    [state] = await db.query("schema_state")
    if not state.installed:
        raise SchemaMismatch(f"{name} has no pgnexus schema: {_MIGRATE}")
    late = missing(state.applied, migrations(sql_dir))
    if late:
        raise SchemaMismatch(f"{name} has an older schema, without {late[0].name}: {_MIGRATE}")
    if not state.pgmq:
        raise SchemaMismatch(f"{name} has lost its schema pgmq: restore it from a backup, or {_MIGRATE}")
    _check_pgmq([row.signature for row in await db.query("pgmq_missing")])


async def check_rights(db: Database, *, caller: bool, nexus: bool) -> bool:
    """See that this connection's role may be the sides that are wanted; whether it may be the nexus side.

    Raises `UnsuitableDatabase` saying what to do.
    """
    [rights] = await db.query("check_rights")
    for wanted, allowed, side, role in (
        (caller, rights.caller, "caller side", "pgnexus_caller"),
        (nexus, rights.nexus, "nexus side", "pgnexus_nexus"),
    ):
        if wanted and not allowed:
            raise UnsuitableDatabase(
                f"{display(db.url)}: the role {rights.role} may not be the {side}: grant {role} to it, or leave "
                f"that side to another process (`pgnexus up --only`, `pgnexus.open(nexus=False)`)"
            )
    return bool(rights.nexus)


async def _step_when_free(
    connection: Connection, known: list[Migration], from_migrations: bool, sql_dir: Path
) -> list[str]:
    """`_step`, tried again where others have what it needs: all that queues behind its locks waits with it."""
    attempts = 0
    while True:
        try:
            return await _step(connection, known, from_migrations, sql_dir)
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            attempts += 1
            if attempts == _LOCK_ATTEMPTS:
                error.add_note(_LOCK_ADVICE)
                raise
        await asyncio.sleep(random.uniform(0.5, 1.5))


async def _step(
    connection: Connection, known: list[Migration], from_migrations: bool, sql_dir: Path
) -> list[str]:
    """Under the lock: see where the database stands and take it one transaction further."""
    async with connection.transaction():
        await connection.execute(load("schema_lock"))
        [state] = await _fetch(connection, "schema_state")
        applied = [] if state.pgmq else [await _install_pgmq(connection)]
        _check_pgmq([row.signature for row in await _fetch(connection, "pgmq_missing")])
        if state.installed:
            late = missing(state.applied, known)[:1]
            if late:
                await connection.execute(load("limit_lock_wait"))
                await _run(connection, late[0].name, late[0].text)
                await _record(connection, late)
        elif state.pgnexus:
            raise SchemaMismatch("a schema named pgnexus is there, but not one of ours: use another database")
        elif from_migrations:
            late = known[:1]
            for migration in late:
                await _run(connection, migration.name, migration.text)
            await _create_table(connection, late)
        else:
            late = known
            files = schema_files(sql_dir)
            for path in files:
                await _run(connection, str(path.relative_to(sql_dir)), read(path))
            await _create_table(connection, late)
        return applied + [migration.name for migration in late]


async def _install_pgmq(connection: Connection) -> str:
    """The extension where the server has it and lets us, else its SQL from the package."""
    [(available,)] = await _fetch(connection, "pgmq_available")
    if available:
        try:
            async with connection.transaction():
                await connection.execute(load("create_pgmq_extension"))
            return "pgmq (the extension)"
        except errors.InsufficientPrivilege:
            pass
    await _run(connection, "pgmq.sql", pgmq_sql())
    return "pgmq"


def _check_pgmq(lacking: list[str]) -> None:
    if lacking:
        raise SchemaMismatch(
            f"the pgmq of this database lacks {', '.join(lacking)}: upgrade it to 1.11 or later "
            "(ALTER EXTENSION pgmq UPDATE)"
        )


async def _create_table(connection: Connection, applied: list[Migration]) -> None:
    await connection.execute(load("create_schema_migrations"))
    await _record(connection, applied)


async def _record(connection: Connection, applied: list[Migration]) -> None:
    for migration in applied:
        row = {"number": migration.number, "name": migration.name, "checksum": migration.checksum}
        await connection.execute(load("record_migration"), {**row, "version": _own_version()})
    await connection.execute(load("publish_migrations"))


async def _apply_roles(connection: Connection, sql_dir: Path) -> None:
    """Roles belong to the whole server, so other databases' processes may be at them, too."""
    for attempt in range(_ROLES_ATTEMPTS):
        try:
            async with connection.transaction():
                await connection.execute(load("schema_lock"))
                await _run(connection, "roles.sql", read(sql_dir / "roles.sql"))
            return
        except (errors.UniqueViolation, errors.DuplicateObject, errors.InternalError_):
            if attempt == _ROLES_ATTEMPTS - 1:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.2))


async def _run(connection: Connection, name: str, text: str) -> None:
    try:
        await connection.execute(text)
    except psycopg.Error as error:
        error.add_note(name)
        raise


async def _fetch(connection: Connection, name: str, params: Mapping[str, Any] | None = None) -> list[Any]:
    return await (await connection.execute(load(name), params)).fetchall()


def _fault(error: psycopg.Error, url: str) -> DatabaseError:
    return DatabaseError(": ".join([display(url), *getattr(error, "__notes__", ()), str(error)]))


def _own_version() -> str:
    try:
        return version("pgnexus")
    except PackageNotFoundError:  # from a checkout
        return "unknown"
