"""The doors between the roles: what a hostile user of the caller's role may not get done by them."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from system import answered, archived, messages, put, sql, started, until

from pgnexus.db import schema
from pgnexus.db.database import Database

SHADOWED = {name: name for name in ("text", "uuid", "jsonb", "timestamptz", "int4", "interval", "numeric")}
SHADOWED |= {"bigint": "int8", "boolean": "bool"}
MESSAGE = "row(1, 1, now(), now(), now(), '{}', null)::pgmq.message_record"


@pytest.fixture
async def caller(caller_url):
    async with await psycopg.AsyncConnection.connect(caller_url, autocommit=True) as connection:
        yield connection


async def test_no_definer_s_names_can_be_shadowed(db):
    """A temporary type or table is found before all others unless pg_temp stands last in the search path."""
    rows = await sql(
        db,
        """select p.oid::regprocedure::text as name, c.setting
           from pg_proc p join pg_namespace n on n.oid = p.pronamespace
           left join lateral unnest(p.proconfig) as c (setting) on c.setting like 'search_path=%'
           where n.nspname in ('pgflow', 'pgnexus', 'nexus', 'nexus_api') and (p.prosecdef or c.setting is not null)""",
    )
    assert rows
    assert [row.name for row in rows if not (row.setting or "").endswith(", pg_temp")] == []


async def test_types_of_its_own_are_not_run_by_the_definer(caller):
    await caller.execute("create temp table seen (who text)")
    await caller.execute(
        """create function pg_temp.spy(pg_catalog.anyelement) returns pg_catalog.bool language plpgsql as $$
           begin insert into pg_temp.seen values (current_user); return true; end $$"""
    )
    for name, true_name in SHADOWED.items():
        await caller.execute(
            f"create domain pg_temp.{name} as pg_catalog.{true_name} check (pg_temp.spy(value))"
        )
    await caller.execute(
        "select nexus_api.create_queue('mine'), nexus_api.cancel(array[gen_random_uuid()]), "
        "nexus_api.takes_results('mine'), nexus_api.amend_result(gen_random_uuid())"
    )
    for statement in (
        "select * from nexus_api.costs(now(), now(), '{model}')",
        "select * from nexus_api.watch('1 s', '1 s')",
        "select * from nexus_api.queue_metrics()",
        "select * from nexus_api.limits()",
        "select * from nexus_api.activity('1 s')",
        "select pgflow.create_queue('pgflow_x')",
        "select pgnexus.ensure_partitions()",
    ):
        await caller.execute(statement)
    found = await caller.execute("select distinct who from pg_temp.seen where who <> 'pgnexus_caller'")
    assert await found.fetchall() == []


@pytest.mark.parametrize("queue", ["ai_requests", "ai_requests_interactive", "ai_requests_batch", "theirs"])
async def test_create_queue_gives_no_rights_to_what_is_another_s(caller, db, queue):
    if queue == "theirs":
        await sql(db, "select pgmq.create('theirs')")
        await put(db, "theirs", '{"secret": 1}')
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.execute("select nexus_api.create_queue(%s)", [queue])
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.execute(f"select message from pgmq.q_{queue}")


async def test_create_queue_again_and_by_its_owner(caller, db):
    await caller.execute("select nexus_api.create_queue('mine'), nexus_api.create_queue('mine')")
    await sql(db, "select pgmq.create('ours')")
    await sql(db, "select nexus_api.create_queue('ours')")
    await caller.execute("select pgmq.send('ours', '{}')")


@pytest.mark.parametrize(
    "name", ["", "A", 'x"; drop table pgnexus.job_results; --', "x'", "a" * 48, "é", "x\n", None]
)
async def test_names_of_queues_that_are_none(caller, name):
    with pytest.raises(psycopg.Error, match="queue name"):
        await caller.execute("select nexus_api.create_queue(%s)", [name])


@pytest.mark.parametrize("queue", ["ai_requests", "theirs"])
async def test_nobody_s_archive_is_forged(caller, db, queue):
    if queue == "theirs":
        await sql(db, "select pgmq.create('theirs')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.execute(f"select nexus_api.archive_message(%s, {MESSAGE}, 'x')", [queue])
    assert await archived(db, queue) == []


async def test_a_failure_is_not_written_into_another_s_queue(caller_url, nexus_url, llmock, db):
    """What fails is published by a trigger with its owner's rights; they must not reach further than nexus's own."""
    await sql(db, "select pgmq.create('theirs')")
    caller = await Database.open(caller_url)
    llmock.fail(400)
    async with (
        started(nexus_url, llmock.base_url(), caller=False),
        started(caller_url, nexus=False),
    ):
        ids = [uuid4() for _ in range(4)]
        await put(
            caller,
            "ai_requests",
            f'{{"request_id": "{ids[0]}", "reply_to": "theirs", "messages": "rubbish"}}',
            f'{{"request_id": "{ids[1]}", "reply_to": "theirs", "deadline": "2001-01-01T00:00:00Z"}}',
            f'{{"request_id": "{ids[2]}", "reply_to": "theirs", "messages": [{{"role": "user", "content": "x"}}]}}',
        )
        await sql(caller, "select nexus_api.cancel(%s)", [ids[3]])
        await put(caller, "ai_requests", f'{{"request_id": "{ids[3]}", "reply_to": "theirs"}}')

        async def all_stored():
            rows = await sql(
                db, "select request_id, status from pgnexus.job_results where finished_at is not null"
            )
            return {row.request_id: row.status for row in rows} if len(rows) == len(ids) else None

        ends = await until(all_stored)
    assert [ends[name] for name in ids] == ["failed", "timeout", "failed", "cancelled"]
    assert await messages(db, "theirs") == []
    await caller.close()


async def test_a_failure_still_reaches_a_queue_made_for_it(caller_url, nexus_url, llmock):
    caller = await Database.open(caller_url)
    await sql(caller, "select nexus_api.create_queue('mine')")
    async with started(nexus_url, llmock.base_url(), caller=False):
        await put(caller, "ai_requests", f'{{"request_id": "{uuid4()}", "reply_to": "mine", "messages": 5}}')
        [answer] = await answered(caller, "mine")
    assert answer["error"]["type"] == "invalid_request"
    await caller.close()


@pytest.mark.parametrize("queue", ["theirs", "ai_results", "ai_requests"])
async def test_a_flow_s_row_names_another_s_queue(caller, db, queue):
    """Both sides write flows' rows; what deletes by them does not follow them into other queues."""
    if queue == "theirs":
        await sql(db, "select pgmq.create('theirs')")
    archive = f"insert into pgmq.a_{queue} (msg_id, read_ct, enqueued_at, archived_at, vt, message) "
    await sql(db, archive + "values (1, 1, now(), now() - interval '1 day', now(), '{}')")
    await caller.execute("insert into pgflow.flows (flow_slug, queue_name) values ('evil', %s)", [queue])
    if queue != "ai_results":  # which is the caller's own to empty
        await caller.execute("select pgflow.prune_data_older_than('1 hour')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.execute(f"truncate pgmq.q_{queue}")
    await caller.execute("select pgflow.delete_flow_and_data('evil')")
    assert await sql(db, f"select 1 from pgmq.a_{queue}")
    assert await sql(db, "select 1 from pgmq.meta where queue_name = %s", queue)


async def test_a_flow_s_own_queue_goes_with_it(caller, db):
    await caller.execute("select pgflow.create_flow('mine')")
    await caller.execute("select pgflow.delete_flow_and_data('mine')")
    assert await sql(db, "select 1 from pgmq.meta where queue_name = 'mine'") == []


async def test_a_flow_s_row_does_not_have_a_lane_opened_by_the_next_migration(caller, database_url):
    await caller.execute("select pgflow.create_flow('greedy')")
    await caller.execute("update pgflow.flows set queue_name = 'ai_requests' where flow_slug = 'greedy'")
    await schema.create_roles(database_url)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await caller.execute("select message from pgmq.q_ai_requests")
