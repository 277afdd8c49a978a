"""Schema: installed once, upgraded in order, the same by both ways, and checked at start."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgnexus.db import migrations, schema
from pgnexus.db.connection import display
from pgnexus.db.database import Database
from pgnexus.errors import DatabaseError, DatabaseUnavailable, SchemaMismatch


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def sql_dir(tmp_path: Path) -> Path:
    """A small schema of its own, with one migration that makes the same."""
    (tmp_path / "schema" / "10_pgnexus").mkdir(parents=True)
    (tmp_path / "migrations").mkdir()
    table = "create schema pgnexus;\ncreate table pgnexus.things (n int);\n"
    (tmp_path / "schema" / "10_pgnexus" / "10_things.sql").write_text(table)
    parts = [migrations.read(path) for path in migrations.schema_files(tmp_path)]
    (tmp_path / "migrations" / "0001_initial.sql").write_text("\n".join(parts))
    return tmp_path


def add_migration(sql_dir: Path, text: str, name: str = "0002_more") -> None:
    (sql_dir / "migrations" / f"{name}.sql").write_text(text)


async def test_a_fresh_database_gets_the_schema_once(empty_database_url: str) -> None:
    applied = await schema.migrate(empty_database_url)
    assert "0001_initial" in applied
    assert await schema.migrate(empty_database_url) == []
    db = await Database.open(empty_database_url)
    await schema.verify(db)
    await db.close()


async def test_many_may_start_at_once(empty_database_url: str, sql_dir: Path) -> None:
    """Eight on a fresh database, then eight on one that lacks two migrations: each is applied once."""
    applied = await asyncio.gather(*(schema.migrate(empty_database_url, sql_dir=sql_dir) for _ in range(8)))
    assert [names for names in applied if names] == [["pgmq", "0001_initial"]]
    add_migration(sql_dir, "create table pgnexus.more (n int)")
    add_migration(sql_dir, "create table pgnexus.last (n int)", "0003_last")
    applied = await asyncio.gather(*(schema.migrate(empty_database_url, sql_dir=sql_dir) for _ in range(8)))
    assert sorted(name for names in applied for name in names) == ["0002_more", "0003_last"]


def test_many_processes_may_start_at_once(empty_database_url: str) -> None:
    code = (
        f"import asyncio; from pgnexus.db.schema import migrate; asyncio.run(migrate({empty_database_url!r}))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]


async def test_a_failing_migration_is_named_and_leaves_nothing(
    empty_database_url: str, sql_dir: Path
) -> None:
    await schema.migrate(empty_database_url, sql_dir=sql_dir)
    add_migration(sql_dir, "create table pgnexus.more (n int); select 1/0")
    with pytest.raises(DatabaseError, match=r"0002_more.*division by zero") as caught:
        await schema.migrate(empty_database_url, sql_dir=sql_dir)
    assert display(empty_database_url) in str(caught.value)
    assert rows(empty_database_url, "SELECT to_regclass('pgnexus.more')") == [(None,)]
    add_migration(sql_dir, "create table pgnexus.more (n int)")
    assert await schema.migrate(empty_database_url, sql_dir=sql_dir) == ["0002_more"]


async def test_a_migration_that_waits_for_a_lock_holds_nobody_up(
    empty_database_url: str, sql_dir: Path
) -> None:
    """Whoever comes after it does not wait until the long transaction before it ends."""
    await schema.migrate(empty_database_url, sql_dir=sql_dir)
    add_migration(sql_dir, "alter table pgnexus.things add column more int")
    async with await psycopg.AsyncConnection.connect(empty_database_url) as long:
        await long.execute("select from pgnexus.things")
        migrating = asyncio.create_task(schema.migrate(empty_database_url, sql_dir=sql_dir))
        async with await psycopg.AsyncConnection.connect(empty_database_url, autocommit=True) as other:
            waits = "select from pg_locks where relation = 'pgnexus.things'::regclass and not granted"
            while not (await (await other.execute(waits)).fetchall()):
                assert not migrating.done()
            await other.execute("insert into pgnexus.things values (1)")
        assert not migrating.done()
        await long.rollback()
    assert await migrating == ["0002_more"]


async def test_a_migration_whose_locks_are_never_free_says_so(
    empty_database_url: str, sql_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LOCK_ATTEMPTS", 1)
    await schema.migrate(empty_database_url, sql_dir=sql_dir)
    add_migration(sql_dir, "alter table pgnexus.things add column more int")
    async with await psycopg.AsyncConnection.connect(empty_database_url) as long:
        await long.execute("select from pgnexus.things")
        with pytest.raises(DatabaseError, match=r"0002_more: others hold locks that this needs"):
            await schema.migrate(empty_database_url, sql_dir=sql_dir)


async def test_a_migration_without_grants_gets_them_where_the_roles_are(
    database_url: str, tmp_path: Path
) -> None:
    shutil.copytree(schema.SQL_DIR, tmp_path / "sql")
    name = f"{len(migrations.migrations()) + 1:04d}_granted_later"
    add_migration(tmp_path / "sql", "create table pgnexus.granted_later (n int)", name)
    assert await schema.migrate(database_url, sql_dir=tmp_path / "sql") == [name]
    found = rows(
        database_url, "SELECT has_table_privilege('pgnexus_caller', 'pgnexus.granted_later', 'SELECT')"
    )
    assert found == [(True,)]


async def test_verify_says_what_is_wrong_and_what_to_run(empty_database_url: str, sql_dir: Path) -> None:
    db = await Database.open(empty_database_url)
    with pytest.raises(SchemaMismatch, match=r"no pgnexus schema: run `pgnexus migrate`"):
        await schema.verify(db, sql_dir=sql_dir)
    await schema.migrate(empty_database_url, sql_dir=sql_dir)
    await schema.verify(db, sql_dir=sql_dir)

    add_migration(sql_dir, "create table pgnexus.more (n int)")
    with pytest.raises(SchemaMismatch, match=r"older schema, without 0002_more: run `pgnexus migrate`"):
        await schema.verify(db, sql_dir=sql_dir)
    await schema.migrate(empty_database_url, sql_dir=sql_dir)
    await schema.verify(db, sql_dir=sql_dir)

    (sql_dir / "migrations" / "0002_more.sql").unlink()
    with pytest.raises(SchemaMismatch, match=r"newer than this pgnexus \(0002_more\): upgrade pgnexus"):
        await schema.verify(db, sql_dir=sql_dir)
    with pytest.raises(SchemaMismatch, match="upgrade pgnexus"):
        await schema.migrate(empty_database_url, sql_dir=sql_dir)

    add_migration(sql_dir, "create table pgnexus.another (n int)")
    with pytest.raises(SchemaMismatch, match="another build"):
        await schema.verify(db, sql_dir=sql_dir)
    await db.close()


@pytest.mark.parametrize("url", ["caller_url", "nexus_url"])
async def test_each_role_may_verify(url: str, request: pytest.FixtureRequest) -> None:
    db = await Database.open(request.getfixturevalue(url))
    await schema.verify(db)
    await db.close()


async def test_a_pgmq_without_what_we_use_is_named(database_url: str, db: Database) -> None:
    rows(database_url, "DROP FUNCTION pgmq.pop(text, int)")
    with pytest.raises(SchemaMismatch, match=r"pgmq\.pop\(text, integer\)"):
        await schema.verify(db)
    rows(database_url, "DROP SCHEMA pgmq CASCADE")
    with pytest.raises(SchemaMismatch, match="pgmq"):
        await schema.verify(db)


async def test_an_old_pgmq_is_refused_before_anything_is_made(empty_database_url: str) -> None:
    rows(empty_database_url, "CREATE SCHEMA pgmq")
    with pytest.raises(SchemaMismatch, match=r"lacks pgmq\.archive\(text, bigint\[\]\), "):
        await schema.migrate(empty_database_url)
    assert rows(empty_database_url, "SELECT to_regnamespace('pgnexus')") == [(None,)]


async def test_a_foreign_schema_of_our_name_is_left_alone(empty_database_url: str) -> None:
    rows(empty_database_url, "CREATE SCHEMA pgnexus")
    with pytest.raises(SchemaMismatch, match="not one of ours"):
        await schema.migrate(empty_database_url)


async def test_roles_want_the_schema_first(empty_database_url: str) -> None:
    with pytest.raises(SchemaMismatch, match="migrate"):
        await schema.create_roles(empty_database_url)


async def test_a_database_that_is_not_there_is_said_so() -> None:
    with pytest.raises(DatabaseUnavailable):
        await schema.migrate("postgresql://127.0.0.1:1/none")


def test_migrations_have_no_gaps(sql_dir: Path) -> None:
    add_migration(sql_dir, "", "0003_gap")
    with pytest.raises(SchemaMismatch, match="0003_gap"):
        migrations.migrations(sql_dir)


# what a database is made of, from its catalogs; every query gives text
CATALOG = {
    "schemas": "SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_'",
    "relations": """
        SELECT c.oid::regclass::text, c.relkind, c.relpersistence, c.reloptions, c.relacl::text,
               pg_get_viewdef(c.oid), pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid),
               obj_description(c.oid, 'pg_class')
        FROM pg_class AS c WHERE {ours}""",
    "columns": """
        SELECT c.oid::regclass::text, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attidentity, a.attgenerated, a.attacl::text, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE {ours}""",
    "indexes": "SELECT pg_get_indexdef(c.oid) FROM pg_class AS c WHERE c.relkind IN ('i', 'I') AND {ours}",
    "constraints": """
        SELECT c.oid::regclass::text, o.conname, pg_get_constraintdef(o.oid)
        FROM pg_constraint AS o JOIN pg_class AS c ON c.oid = o.conrelid WHERE {ours}""",
    "triggers": """
        SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE NOT t.tgisinternal AND {ours}""",
    "functions": """
        SELECT pg_get_functiondef(p.oid), p.proacl::text, obj_description(p.oid, 'pg_proc')
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND p.prokind <> 'a'""",
    "types": """
        SELECT t.oid::regtype::text, t.typtype, t.typacl::text,
               (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder)
                FROM pg_enum AS e WHERE e.enumtypid = t.oid)
        FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
        WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'""",
    "migrations": "SELECT number, name, checksum FROM pgnexus.schema_migrations",
    "queues": "SELECT queue_name FROM pgmq.meta",
}  # fmt: skip
OURS = "c.relnamespace::regnamespace::text !~ '^(pg_|information_schema)'"


def catalog(url: str) -> dict[str, list[str]]:
    return {
        name: sorted(map(str, rows(url, statement.format(ours=OURS)))) for name, statement in CATALOG.items()
    }


@pytest.fixture
def another_database_url(server) -> Iterator[str]:
    name = server.create()
    yield server.url(name)
    server.drop(name)


async def test_migrated_equals_fresh(empty_database_url: str, another_database_url: str) -> None:
    """A change in schema/ wants a migration beside it."""
    await schema.migrate(empty_database_url)
    await schema.migrate(another_database_url, from_migrations=True)
    fresh, migrated = catalog(empty_database_url), catalog(another_database_url)
    assert all(fresh.values())
    for name in CATALOG:
        assert migrated[name] == fresh[name], name


async def test_the_comparison_sees_a_difference(database_url: str) -> None:
    before = catalog(database_url)
    rows(database_url, "REVOKE SELECT ON pgnexus.schema_migrations FROM pgnexus_caller")
    assert catalog(database_url)["relations"] != before["relations"]


def test_no_forced_plan_is_compiled(database_url: str) -> None:
    """Where sequential scans are off, one that there has to be costs 1e10: the server would compile it each time."""
    found = rows(
        database_url, "select proname, proconfig from pg_proc where 'enable_seqscan=off' = any (proconfig)"
    )
    assert found
    assert [name for name, settings in found if "jit=off" not in settings] == []


def test_what_is_released_is_frozen() -> None:
    """Databases out there were made by these very files; add a migration instead of changing one."""
    released = {
        "0001_initial": "8f87991c73e0ae249876c679469f176579c375a53956ab612a28b25cb8e39199",
        "0002_flows": "45992c234a4b133fc9eaae2d37ee8a1262d0df791ba7284fa18772fa701cc232",
        "0003_router": "0a0f5c610233cff18a268249c9dde3ad262ac82449771abbad7c533630f3ea58",
        "0004_under_fire": "068c757bbc280d6af4373632c7344e8b46623ab2d3dd9b533c5b64e0b81638d1",
    }
    for name, digest in released.items():
        file = migrations.SQL_DIR / "migrations" / f"{name}.sql"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, name
