"""What is old and has ended goes; what has not ended, or is still named, stays; nobody waits for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from system import fast, put, sql, started, until

from pgnexus.caller.retention import parts as caller_parts
from pgnexus.db.database import Database
from pgnexus.errors import InvalidSettings
from pgnexus.flow.retention import parts as flow_parts
from pgnexus.nexus.retention import parts as nexus_parts
from pgnexus.pruning import Part, Pruned, Pruner, prune
from pgnexus.settings import Settings

DAY = 86400.0
SETTINGS = Settings.load()

_RESULTS = """
insert into pgnexus.job_results (request_id, status, input, output, enqueued_at, finished_at)
select (left(pgnexus.uuid_floor(t.at)::text, 19) || right(gen_random_uuid()::text, 17))::uuid, 'success',
       jsonb_build_object('messages', repeat('x', 500)), '{"response": "y"}', t.at, t.at
from generate_series(1, %s) as n
cross join lateral (select now() - make_interval(secs => %s) + n * interval '1 ms' as at) t
returning request_id"""


async def results(db: Database, count: int, age: float) -> list[UUID]:
    """Store results of requests that came and ended ``age`` seconds ago; their months are made first."""
    await sql(
        db,
        "select pgnexus.ensure_partitions(now() - make_interval(secs => %s + n), 0)"
        " from generate_series(0, 86400, 86400) n",
        age,
    )
    return [row.request_id for row in await sql(db, _RESULTS, count, age)]


async def unend(db: Database, request_id: UUID) -> None:
    await sql(
        db,
        "update pgnexus.job_results set status = 'enqueued', finished_at = null where request_id = %s",
        request_id,
    )


async def left(db: Database) -> set[UUID]:
    return {row.request_id for row in await sql(db, "select request_id from pgnexus.job_results")}


async def months(db: Database) -> list[str]:
    """The months that begin before this one."""
    rows = await sql(
        db,
        "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'pgnexus.job_results'::regclass and c.relname < to_char(now(), '\"job_results_\"YYYY_MM')"
        " and c.relname <> 'job_results_default' order by 1",
    )
    return [row.relname for row in rows]


async def pruned(db: Database, parts: list[Part], **options: Any) -> dict[str, Pruned]:
    return {gone.what: gone async for gone in prune(db, parts, rest=0, **options)}


@asynccontextmanager
async def transaction(url: str, *statements: str) -> Any:
    """Somebody whose transaction goes on after these statements."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for statement in statements:
            await connection.execute(statement)
        yield connection
        await connection.rollback()


class TestResults:
    async def test_what_is_old_goes_and_nothing_else(self, db):
        old, young = await results(db, 1203, 40 * DAY), await results(db, 40, 20 * DAY)
        await unend(db, old[600])
        gone = await pruned(db, caller_parts(SETTINGS, 30 * DAY))
        assert gone["results"].rows == 1202
        assert gone["results"].bytes > 1202 * 300
        assert await left(db) == {old[600], *young}

    async def test_what_came_long_ago_and_ended_lately_stays(self, db):
        [one, _] = await results(db, 2, 40 * DAY)
        await sql(db, "update pgnexus.job_results set finished_at = now() where request_id = %s", one)
        await pruned(db, caller_parts(SETTINGS, 30 * DAY))
        assert await left(db) == {one}

    async def test_ids_of_other_versions_go_too(self, db):
        await results(db, 30, 40 * DAY)
        await sql(
            db,
            "insert into pgnexus.job_results (request_id, status, finished_at)"
            " select gen_random_uuid(), 'success', now() - n * interval '10 days' from generate_series(1, 1200) n",
        )
        young = await results(db, 700, 5 * DAY)
        await pruned(db, caller_parts(SETTINGS, 35 * DAY))
        assert len(await left(db)) == 3 + len(young)

    async def test_a_dry_run_tells_and_removes_nothing(self, db):
        await results(db, 800, 70 * DAY)
        await results(db, 30, 31 * DAY)
        before = await left(db)
        told = await pruned(db, caller_parts(SETTINGS, 30 * DAY), dry_run=True)
        assert await left(db) == before
        assert sum(one.rows for one in told.values()) == 830
        done = await pruned(db, caller_parts(SETTINGS, 30 * DAY))
        assert {what: one.rows for what, one in done.items()} == {
            what: one.rows for what, one in told.items()
        }

    async def test_what_a_living_key_names_stays(self, database_url, db):
        async with started(database_url, nexus=False) as app:
            handle = await app.service.enqueue("simple", "Hello", idempotency_key="k")
            await handle.cancel()
            await sql(db, "update pgnexus.job_results set finished_at = now() - interval '2 days'")
            await pruned(db, caller_parts(SETTINGS, DAY))
            again = await app.service.enqueue("simple", "Hello", idempotency_key="k")
            assert again.request_id == handle.request_id
            await sql(db, "update pgnexus.idempotency_keys set expires_at = now()")
            # its id is younger than a day, so it is looked at as one of those that came long ago
            await sql(
                db,
                "update pgnexus.job_results set request_id = pgnexus.uuid_floor(now() - interval '3 days')",
            )
            await pruned(db, caller_parts(SETTINGS, DAY))
            assert await left(db) == set()
            anew = await app.service.enqueue("simple", "Hello", idempotency_key="k")
            assert anew.request_id != handle.request_id

    async def test_many_at_once_remove_each_row_once(self, database_url, db):
        await results(db, 3000, 40 * DAY)
        [part] = [part for part in caller_parts(SETTINGS, 30 * DAY) if part.query == "prune_results"]
        gone = await asyncio.gather(*(pruned(db, [part]) for _ in range(4)))
        assert sum(one["results"].rows for one in gone) == 3000
        assert await left(db) == set()

    async def test_a_row_that_somebody_holds_is_left_for_the_next_time(self, database_url, db):
        [held, *_] = await results(db, 20, 40 * DAY)
        hold = f"select from pgnexus.job_results where request_id = '{held}' for update"
        async with transaction(database_url, hold):
            await pruned(db, caller_parts(SETTINGS, 30 * DAY)[1:])
            assert await left(db) == {held}
        await pruned(db, caller_parts(SETTINGS, 30 * DAY)[1:])
        assert await left(db) == set()

    async def test_an_id_whose_row_is_gone_starts_anew(self, database_url, db):
        request_id = uuid4()
        async with started(database_url, nexus=False) as app:
            handle = await app.service.enqueue("simple", "Hello", request_id=request_id)
            await handle.cancel()
            await sql(db, "update pgnexus.job_results set finished_at = now() - interval '2 days'")
            await pruned(db, caller_parts(SETTINGS, DAY))
            again = await app.service.enqueue("simple", "Hello", request_id=request_id)
            assert await again.status() == "enqueued"


class TestMonths:
    async def test_by_itself_results_go_by_whole_months(self, db):
        """When they are kept for longer than one; what has an id of another version goes at its time."""
        old, recent = await results(db, 700, 130 * DAY), await results(db, 700, 62 * DAY)
        await unend(db, old[0])
        await sql(
            db,
            "insert into pgnexus.job_results (request_id, status, finished_at)"
            " values ('f0000000-0000-4000-8000-000000000000', 'success', now() - interval '62 days')",
        )
        [cut] = await sql(db, "select date_trunc('month', now() - interval '61 days', 'UTC') as month")
        rows = await sql(
            db,
            "select request_id from pgnexus.job_results"
            " where request_id < pgnexus.uuid_floor(%s) and finished_at < now()",
            cut.month,
        )
        gone = await pruned(db, caller_parts(Settings.load(keep_results=61 * DAY)))
        assert sum(one.rows for one in gone.values()) == len(rows) + 1
        assert len(await left(db)) == len(old) + len(recent) - len(rows)
        await pruned(db, caller_parts(SETTINGS, 61 * DAY))
        assert await left(db) == {old[0]}

    async def test_a_month_that_may_go_is_dropped(self, db):
        await results(db, 1500, 100 * DAY)
        young = await results(db, 10, 1 * DAY)
        before = await months(db)
        gone = await pruned(db, caller_parts(SETTINGS, 30 * DAY))
        assert sum(one.rows for one in gone.values()) == 1500
        [month] = [one for what, one in gone.items() if what.startswith("job_results_2") and one.rows]
        assert month.rows == 1500
        assert month.bytes > 1500 * 300
        assert gone["results"].rows == 0
        assert len(await months(db)) < len(before)
        assert await left(db) == set(young)

    async def test_one_with_a_request_that_has_not_ended_stays(self, db):
        old = await results(db, 1500, 100 * DAY)
        await unend(db, old[-1])
        gone = await pruned(db, caller_parts(SETTINGS, 30 * DAY))
        assert gone["results"].rows == 1499
        assert await left(db) == {old[-1]}

    async def test_what_is_written_while_it_is_looked_at_keeps_it(self, db):
        await results(db, 20, 100 * DAY)
        params = {"keep": 30 * DAY, "dry": False}
        [begun] = await db.query("prune_months", params | {"after": ""})
        while begun.resume.split(":")[1:2] != ["0"]:
            [begun] = await db.query("prune_months", params | {"after": begun.resume})
        month = begun.resume.split(":")[0]
        [looked] = await db.query("prune_months", params | {"after": begun.resume})
        assert looked.resume.split(":")[2] == "20"
        await sql(
            db,
            "insert into pgnexus.job_results (request_id, status, input)"
            " select pgnexus.uuid_floor(now() - interval '100 days'), 'enqueued', '{}'",
        )
        [ended] = await db.query("prune_months", params | {"after": looked.resume})
        assert (ended.what, ended.removed, ended.resume) == (None, 0, month)
        assert len(await left(db)) == 21
        await sql(
            db,
            "update pgnexus.job_results set status = 'success', finished_at = enqueued_at - interval '99 days'",
        )
        gone = await pruned(db, caller_parts(SETTINGS, 30 * DAY))
        assert gone[month].rows == 21

    async def test_nobody_waits_behind_it(self, database_url, db, monkeypatch, caplog):
        """A long transaction has looked at job_results: the month is left, and others go on meanwhile."""
        await results(db, 20, 100 * DAY)
        before = await months(db)
        async with transaction(database_url, "select count(*) from pgnexus.job_results"):
            after: str | None = ""
            seen: list[bool] = []
            while after is not None and len(seen) < 50:
                [step] = await db.query("prune_months", {"keep": 30 * DAY, "dry": False, "after": after})
                seen.append(step.busy)
                if step.busy:
                    break
                after = step.resume
            assert seen[-1]
            assert await months(db) == before
            monkeypatch.setattr("pgnexus.pruning._TRIES", 2)
            gone = await pruned(db, caller_parts(SETTINGS, 30 * DAY))
            assert sum(one.rows for one in gone.values()) == 0  # it will go as a whole
            assert "stays for now" in caplog.text
            assert await months(db) == before
            async with db.connection() as other, other.transaction():
                await other.execute("set local lock_timeout = '2s'")
                await other.execute("select from pgnexus.job_results limit 1")
        gone = await pruned(db, caller_parts(SETTINGS, 30 * DAY))
        assert sum(one.rows for one in gone.values()) == 20
        assert await months(db) == []

    async def test_many_at_once_drop_it_once(self, db):
        await results(db, 300, 100 * DAY)
        [part] = [part for part in caller_parts(SETTINGS, 30 * DAY) if part.query == "prune_months"]
        gone = await asyncio.gather(*(pruned(db, [part]) for _ in range(4)))
        assert sum(one.rows for each in gone for one in each.values()) == 300
        assert await months(db) == []

    async def test_a_new_month_is_not_waited_for_either(self, database_url, db):
        make = "select pgnexus.ensure_partitions(now() + interval '8 months', 0) as made"
        async with transaction(database_url, "select from pgnexus.job_results_default"):
            assert (await sql(db, make))[0].made == 0
        assert (await sql(db, make))[0].made == 1


class TestNexus:
    async def test_runs_of_requests_that_ended_go(self, db):
        """Of whatever version their ids are; what has not ended, ended lately or is a flow's own stays."""
        await sql(
            db,
            "insert into pgflow.runs (run_id, flow_slug, input, status, completed_at)"
            " select case when n % 2 = 0 then gen_random_uuid() else pgflow.uuid_floor(now() - n * interval '1 hour')"
            " end,"
            " case when n = 601 then 'f' else 'llm_request_workflow' end, '{}',"
            " case when n = 600 then 'started' else 'completed' end,"
            " case when n <> 600 then now() - n * interval '1 hour' end"
            " from generate_series(1, 1500) n",
        )
        for table in ("step_states", "step_tasks"):
            await sql(
                db,
                f"insert into pgflow.{table} (run_id, flow_slug, step_slug) select run_id, flow_slug, s"
                " from pgflow.runs, unnest('{validate,route_llm}'::text[]) s",
            )
        told = await pruned(db, nexus_parts(SETTINGS, 24.5 * 3600), dry_run=True)
        gone = await pruned(db, nexus_parts(SETTINGS, 24.5 * 3600))
        assert gone["runs of requests"].rows == told["runs of requests"].rows == 1500 - 24 - 2
        for table, rows in {"runs": 26, "step_states": 52, "step_tasks": 52}.items():
            assert len(await sql(db, f"select 1 from pgflow.{table}")) == rows

    async def test_a_message_that_comes_once_more_is_known_until_its_run_goes(self, database_url, db, llmock):
        request_id = uuid4()  # of another version than 7: looked at, whenever it came
        message = (
            f'{{"v": 1, "request_id": "{request_id}", "messages": [{{"role": "user", "content": "Hi"}}]}}'
        )

        async def ended() -> bool:
            rows = await sql(db, "select 1 from pgflow.runs where status = 'completed'")
            return len(rows) == 1 and not await sql(db, "select 1 from pgmq.q_ai_requests")

        async with started(database_url, llmock.base_url()) as app:
            await put(db, "ai_requests", message)
            await until(ended)
            await put(db, "ai_requests", message)
            await app.service.call("simple", "something else, behind it")
            calls = len(await sql(db, "select 1 from nexus.attempts where request_id = %s", request_id))
            assert calls == 1
            await sql(db, "update pgflow.runs set completed_at = now() - interval '2 days'")
            gone = await pruned(db, nexus_parts(SETTINGS, DAY))
            assert gone["runs of requests"].rows == 1
            for table in ("step_states", "step_tasks"):
                assert not await sql(db, f"select 1 from pgflow.{table} where run_id = %s", request_id)
            await put(db, "ai_requests", message)
            await until(
                lambda: sql(db, "select 1 from nexus.attempts where request_id = %s offset 1", request_id)
            )
            rows = await sql(db, "select status from pgnexus.job_results where request_id = %s", request_id)
        assert [row.status for row in rows] == ["success"]

    async def test_books_of_this_month_and_of_open_requests_stay(self, db):
        await sql(
            db,
            "insert into nexus.attempts (request_id, attempt, call, instance_id, provider, model, outcome, started_at,"
            " duration_ms) select gen_random_uuid(), 1, 1, gen_random_uuid(), 'p', 'm', 'success',"
            " now() - n * interval '40 days', 5 from generate_series(0, 10) n",
        )
        await sql(
            db,
            "insert into pgflow.runs (run_id, flow_slug, input, remaining_steps) select request_id,"
            " 'llm_request_workflow', '{}', 4 from nexus.attempts where started_at < now() - interval '390 days'",
        )
        told = await pruned(db, nexus_parts(SETTINGS, 60), dry_run=True)
        gone = await pruned(db, nexus_parts(SETTINGS, 60))
        assert gone["attempts"].rows == told["attempts"].rows == 9
        assert gone["attempts"].bytes > 9 * 100
        assert len(await sql(db, "select 1 from nexus.attempts")) == 2

    async def test_instances_go_when_nothing_tells_of_them(self, db):
        await sql(
            db,
            "insert into pgflow.workers (worker_id, queue_name, function_name, last_heartbeat_at, stopped_at)"
            " select gen_random_uuid(), 'pgflow', 'old', t, t from"
            " (select now() - n * interval '5 hours' as t from generate_series(0, 9) n) x",
        )
        gone = await pruned(db, nexus_parts(SETTINGS, 60))
        assert gone["instances"].rows == 5  # a day at least they are kept
        assert len(await sql(db, "select 1 from pgflow.workers")) == 5

    async def test_what_was_put_aside_goes(self, db):
        for queue in ("ai_requests", "ai_requests_batch", "ai_results"):
            await sql(
                db,
                f"insert into pgmq.a_{queue} (msg_id, vt, message, archived_at)"
                " select n, now(), '{}', now() - n * interval '1 day' from generate_series(1, 700) n",
            )
        both = [*caller_parts(SETTINGS), *nexus_parts(SETTINGS)]
        told = await pruned(db, both, dry_run=True)
        gone = await pruned(db, both)
        assert gone["rejected requests"].rows == told["rejected requests"].rows == 2 * 671
        assert gone["rejected results"].rows == 671


class TestFlows:
    async def test_runs_of_flows_that_ended_go(self, db):
        """A thousand that were started in one moment, more than a slice; one of them waits to this day."""
        await sql(
            db,
            "insert into pgflow.runs (flow_slug, input, status, started_at, completed_at, remaining_steps)"
            " select 'f', '{}', case when n = 1 then 'started' else 'completed' end, now() - interval '9 days',"
            " case when n > 1 then now() - interval '8 days' end, 0 from generate_series(1, 1300) n",
        )
        await sql(
            db,
            "insert into pgflow.runs (flow_slug, input, status, started_at, completed_at)"
            " select 'f', '{}', 'completed', now() - interval '9 days', now() from generate_series(1, 3) n",
        )
        await sql(
            db,
            "insert into pgflow.step_tasks (run_id, flow_slug, step_slug, status, output)"
            " select run_id, flow_slug, 's', 'completed', '{\"a\": 1}' from pgflow.runs where completed_at < now()",
        )
        told = await pruned(db, flow_parts(SETTINGS, 7 * DAY), dry_run=True)
        gone = await pruned(db, flow_parts(SETTINGS, 7 * DAY))
        assert gone["runs of flows"].rows == told["runs of flows"].rows == 1299
        assert len(await sql(db, "select 1 from pgflow.runs")) == 4
        assert len(await sql(db, "select 1 from pgflow.step_tasks")) == 3


class TestByItself:
    async def test_one_of_many_makes_a_round(self, db):
        params = {"part": "results", "every": 600.0}
        turns = await asyncio.gather(*(db.query("begin_pruning", params) for _ in range(8)))
        assert sum(turn.mine for [turn] in turns) == 1
        await sql(db, "update pgflow.prunings set begun_at = begun_at - interval '601 s'")
        turns = await asyncio.gather(*(db.query("begin_pruning", params) for _ in range(8)))
        assert sum(turn.mine for [turn] in turns) == 1

    async def test_each_side_prunes_what_is_its_own(self, caller_url, nexus_url, db):
        await results(db, 100, 100 * DAY)
        await sql(
            db,
            "insert into pgflow.runs (flow_slug, input, status, started_at, failed_at) select 'llm_request_workflow',"
            " '{}', 'failed', now(), now() - interval '2 days' from generate_series(1, 10)",
        )
        caller, nexus = await Database.open(caller_url), await Database.open(nexus_url)
        keeping = fast(caller_url, keep_results=30 * DAY)
        pruners = [
            Pruner(caller, "results", caller_parts(keeping), every=0, looks=0.05),
            Pruner(nexus, "requests", nexus_parts(keeping), every=0, looks=0.05),
            Pruner(nexus, "flows", flow_parts(keeping), every=0, looks=0.05),
        ]
        for pruner in pruners:
            pruner.start()

        async def done() -> bool:
            rows = await sql(db, "select 1 from pgnexus.job_results union all select 1 from pgflow.runs")
            return not rows

        try:
            await until(done)
        finally:
            for pruner in pruners:
                await pruner.stop()
            await caller.close()
            await nexus.close()

    async def test_by_default_nothing_goes_that_was_paid_for(self, db):
        young = await results(db, 5, 300 * DAY)
        everything = [*caller_parts(SETTINGS), *nexus_parts(SETTINGS), *flow_parts(SETTINGS)]
        assert set(await pruned(db, everything)) == {
            "rejected results",
            "runs of requests",
            "instances",
            "rejected requests",
        }
        assert await left(db) == set(young)

    async def test_it_stops_between_two_slices(self, db):
        await results(db, 1600, 40 * DAY)
        [part] = [part for part in caller_parts(SETTINGS, 30 * DAY) if part.query == "prune_results"]
        wanted = iter([True, False, False])  # until the first slice is done
        gone = await pruned(db, [part, part], wanted=lambda: next(wanted))
        assert gone["results"].rows == 500
        assert len(await left(db)) == 1100

    @pytest.mark.parametrize("value", [0, -1, 59, float("inf"), float("nan"), 1e300])
    def test_nonsense_is_refused(self, value):
        with pytest.raises(InvalidSettings, match="keep_results"):
            Settings.load(keep_results=value)
