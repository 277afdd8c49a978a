"""Parking: what waits for its turn holds neither a worker nor a place in a queue, and its turn comes fairly."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.rows import namedtuple_row
from system import answered, messages, put, sql, started

from pgnexus.db.database import Database
from pgnexus.flow.registry import Registry
from pgnexus.messages import REQUEST_QUEUES
from pgnexus.nexus import parking as parking_module
from pgnexus.nexus.parking import Parking

QUESTION = [{"role": "user", "content": "Hello"}]


async def a_worker(db: Database) -> UUID:
    worker = uuid4()
    await sql(db, "select pgflow.heartbeat(%s, 'llm_request_workflow', 'a test', '1 hour'::interval)", worker)
    return worker


async def taken(db: Database, worker: UUID, *agents: str | None, priority: str = "standard") -> list[UUID]:
    """Requests of these agents, taken up by the worker, in their order."""
    fields = [
        {"messages": QUESTION, "priority": priority, "request_id": str(UUID(int=_next()))} for _ in agents
    ]
    for request, agent in zip(fields, agents, strict=True):
        if agent is not None:
            request["agent_id"] = agent
    await put(db, REQUEST_QUEUES[priority], *map(json.dumps, fields))
    rows = await sql(db, "select run_id from nexus.take_requests(%s, 1000, 1000)", worker)
    assert len(rows) == len(agents)
    return [UUID(request["request_id"]) for request in fields]


_numbers = iter(range(1, 10**9))


def _next() -> int:
    return next(_numbers)


async def park(
    db: Database, worker: UUID, *runs: UUID, scope: str = "openai", attempt: int = 1, **over
) -> int:
    """Settle the runs as parked; how many were."""
    found = await sql(db, "select run_id, input from pgflow.runs where run_id = any(%s)", list(runs))
    items = [
        json.dumps(
            {
                "run_id": str(row.run_id),
                "step": "validate",
                "attempt": attempt,
                "outcome": "park",
                "scope": scope,
            }
            | {name: row.input[name] for name in ("agent_id", "priority", "deadline") if name in row.input}
            | over
        )
        for row in found
    ]
    return len(await sql(db, "select nexus.settle(%s, %s::text[]::jsonb[])", worker, items))


async def take(
    db: Database, worker: UUID, limit: int, others: int | None = None, scope: str = "openai", after: str = ""
):
    return await sql(
        db, "select * from nexus.take_parked(%s, %s, %s, %s, %s)", worker, scope, limit, others, after
    )


async def test_a_parked_request_holds_no_worker_and_no_place_in_a_queue(db):
    worker = await a_worker(db)
    [run] = await taken(db, worker, "a")
    assert await park(db, worker, run) == 1
    [task] = await sql(
        db, "select status, attempts_count, not_before::text, message_id from pgflow.step_tasks"
    )
    assert task == ("queued", 0, "infinity", None)
    for queue in (*REQUEST_QUEUES.values(), "llm_request_workflow"):
        assert await messages(db, queue) == []
    [due] = await sql(db, "select * from pgflow.send_due_tasks(1000)")
    assert (due.sent, due.next_in) == (0, None)
    assert await sql(db, "select * from pgflow.recover_tasks()") == []
    [row] = await take(db, worker, 5)
    assert (row.run_id, row.attempt, row.agent_id, row.input["messages"]) == (run, 1, "a", QUESTION)
    assert await sql(db, "select * from nexus.parked") == []
    [done] = await sql(
        db, "select count(*) from pgflow.step_tasks where status = 'started' and not_before is null"
    )
    assert done.count == 1


async def test_who_lost_a_request_does_not_park_it(db):
    worker, other = await a_worker(db), await a_worker(db)
    [run] = await taken(db, worker, "a")
    assert await park(db, other, run) == 0
    assert await park(db, worker, run, attempt=2) == 0
    assert await sql(db, "select * from nexus.parked") == []


async def test_an_attempt_that_called_a_provider_counts(db):
    worker = await a_worker(db)
    [run] = await taken(db, worker, "a")
    call = {
        "call": 1, "provider": "openai", "model": "m", "outcome": "provider_unavailable",
        "started_at": "2026-01-01T00:00:00Z", "duration_ms": 5,
    }  # fmt: skip
    await park(db, worker, run, calls=[call])
    [row] = await take(db, worker, 1)
    assert row.attempt == 2
    await park(db, worker, run, attempt=2, calls=[call])
    assert len(await sql(db, "select 1 from nexus.attempts")) == 2


async def test_lanes_in_order_and_agents_by_turns(db):
    worker = await a_worker(db)
    batch = await taken(db, worker, "a", priority="batch")
    flood = await taken(db, worker, *["a"] * 5)
    few = await taken(db, worker, "b", None)
    urgent = await taken(db, worker, "c", priority="interactive")
    await park(db, worker, *batch, *flood, *few, *urgent)
    rows = await take(db, worker, 5)
    assert [row.run_id for row in rows] == [*urgent, few[1], flood[0], few[0], flood[1]]
    rows = await take(db, worker, 100)
    assert [row.run_id for row in rows] == [*flood[2:], *batch]
    assert await take(db, worker, 100) == []


async def test_turns_go_on_where_they_ended(db):
    worker = await a_worker(db)
    await park(db, worker, *await taken(db, worker, *"abcabc"))
    served, after = [], ""
    for _ in range(6):
        [row] = await take(db, worker, 1, after=after)
        served.append(after := row.agent_id)
    assert served == list("abcabc")


async def test_only_interactive_ones_use_the_reserve(db):
    worker = await a_worker(db)
    others = await taken(db, worker, "a", "b")
    urgent = await taken(db, worker, "a", "b", priority="interactive")
    await park(db, worker, *others, *urgent)
    assert [row.run_id for row in await take(db, worker, 10, others=0)] == urgent
    assert [row.run_id for row in await take(db, worker, 10, others=1)] == others[:1]


async def test_one_that_is_parked_again_keeps_its_place(db):
    worker = await a_worker(db)
    first = await taken(db, worker, "a")
    second = await taken(db, worker, "a")
    await park(db, worker, *first, *second)
    [row] = await take(db, worker, 1)
    await park(db, worker, row.run_id, scope="openai")
    [row] = await take(db, worker, 1)
    assert [row.run_id] == first


@pytest.mark.parametrize("how", ["cancel", "operator"])
async def test_the_end_of_a_run_ends_its_parking(db, how):
    worker = await a_worker(db)
    [run, other] = await taken(db, worker, "a", "a")
    await park(db, worker, run, other)
    if how == "cancel":
        await sql(db, "select nexus_api.cancel(%s)", [run])
    else:
        await sql(db, "update pgflow.runs set status = 'failed', failed_at = now() where run_id = %s", run)
    assert await sql(db, "select run_id from nexus.parked") == [(other,)]
    [answer] = await messages(db, "ai_results")
    assert (answer["request_id"], answer["status"]) == (
        str(run),
        "cancelled" if how == "cancel" else "failed",
    )
    assert [row.run_id for row in await take(db, worker, 5)] == [other]


async def test_a_row_whose_request_went_another_way_is_in_nobodys_way(db):
    worker = await a_worker(db)
    gone, there = await taken(db, worker, "a", "a")
    await park(db, worker, gone, there)
    await sql(db, "update pgflow.step_tasks set not_before = null where run_id = %s", gone)
    assert [row.run_id for row in await take(db, worker, 1)] in ([], [there])
    assert gone not in {row.run_id for row in await sql(db, "select run_id from nexus.parked")}


async def test_what_somebody_is_ending_is_passed_over(db):
    worker = await a_worker(db)
    ending, there = await taken(db, worker, "a", "b")
    await park(db, worker, ending, there)
    async with db.connection() as connection, connection.transaction():
        await connection.execute("select pgflow.cancel_runs(%s)", [[ending]])
        assert [row.run_id for row in await take(db, worker, 5)] == [there]
    assert await sql(db, "select * from nexus.parked") == []


async def test_who_waits_past_the_deadline_is_answered_by_the_next_look(database_url, db, llmock):
    worker = await a_worker(db)
    [run, other] = await taken(db, worker, "a", "a")
    await park(db, worker, run, deadline=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    await park(db, worker, other)
    await sql(db, "insert into nexus.buckets select 'openai', 'requests_per_minute', -1000, now()")
    await sql(
        db,
        """update pgflow.runs set input = input || '{"deadline": "2026-01-01T00:00:00Z"}' where run_id = %s""",
        run,
    )
    await sql(db, "update nexus.parked set deadline = now() where deadline is not null")
    limits = {"openai": {"requests_per_minute": 1}}
    async with started(database_url, llmock.base_url(), limits=limits, caller=False):
        [answer] = await answered(db, "ai_results")
    assert (answer["request_id"], answer["status"]) == (str(run), "timeout")
    assert await sql(db, "select run_id from nexus.parked") == [(other,)]
    assert llmock.requests == []


async def test_unpark_sends_a_whole_scope_back_to_its_queue(db):
    worker = await a_worker(db)
    runs = await taken(db, worker, "a", "b", "c")
    await park(db, worker, *runs[:2], scope="x")
    await park(db, worker, runs[2], scope="y")
    [row] = await sql(db, "select nexus.unpark('x')")
    assert row.unpark == 2
    rows = await sql(db, "select run_id, attempt from nexus.take_requests(%s, 10, 10)", worker)
    assert sorted(rows) == [(run, 1) for run in runs[:2]]
    assert await sql(db, "select run_id from nexus.parked") == [(runs[2],)]


async def test_who_follows_a_flight_that_has_ended_waits_for_nothing(db):
    worker = await a_worker(db)
    [late, early] = await taken(db, worker, "a", "b")
    await sql(db, "insert into nexus.flights (key, request_id) values ('\\xaa', gen_random_uuid())")
    await park(db, worker, early, scope="flight:aa")
    await park(db, worker, late, scope="flight:bb")
    assert await sql(db, "select run_id from nexus.parked") == [(early,)]
    assert [row.run_id for row in await sql(db, "select * from nexus.take_requests(%s, 9, 9)", worker)] == [
        late
    ]
    [row] = await sql(db, "select nexus.unpark_stranded('1 minute', 10)")
    assert row.unpark_stranded == 0
    await sql(db, "update nexus.parked set parked_at = now() - interval '2 minutes'")
    [row] = await sql(db, "select nexus.unpark_stranded('1 minute', 10)")
    assert row.unpark_stranded == 1


async def test_scopes_are_found_without_the_flights(db):
    worker = await a_worker(db)
    runs = await taken(db, worker, *"abcdef")
    await sql(db, "insert into nexus.flights (key, request_id) values ('\\xaa', gen_random_uuid())")
    for run, scope in zip(
        runs, ("agent:a", "openai", "flight:aa", "share", "openai", "agent:b"), strict=True
    ):
        await park(db, worker, run, scope=scope)

    async def scopes(after: str, limit: int = 10) -> list[str]:
        return [
            row.scope for row in await sql(db, "select nexus.parked_scopes(%s, %s) as scope", after, limit)
        ]

    assert await scopes("") == ["agent:a", "agent:b", "openai", "share"]
    assert await scopes("agent:b", 1) == ["openai"]


class Mistaken:
    """A gate that says there is room where there is none."""

    def __init__(self) -> None:
        self.asked = 0

    async def room(self, scope: str, most: int) -> tuple[int, float]:
        self.asked += 1
        return most, 0.0


async def test_a_line_whose_first_come_back_from_their_turn_rests(db, monkeypatch):
    monkeypatch.setattr(parking_module, "_FIRST_REST", 60.0)
    monkeypatch.setattr(parking_module, "_LAST_REST", 60.0)
    registry = Registry(db.url, "x", heartbeat_interval=1, lease=1, connect_timeout=1)
    worker, room = registry.instance_id(), Mistaken()
    parking = Parking(db, registry, room, interval=60)
    await park(db, worker, *await taken(db, worker, "a", "b"))
    parking.heard("openai")
    [first, second] = await parking.take(10, 10)
    assert (first.turn, room.asked) == ("openai", 1)
    parking.heard("openai")
    await park(db, worker, first.run_id)
    parking.settled(first, "openai")
    parking.freed()
    assert await parking.take(10, 10) == []
    assert room.asked == 1
    parking.settled(second, None)  # it was let through: there is room after all, in a while
    assert (parking.pause() or 0) > 1


CROWD = """
with runs as (
  insert into pgflow.runs (run_id, flow_slug, input, remaining_steps)
  select gen_random_uuid(), 'llm_request_workflow', '{{}}', 4 from generate_series(1, {many})
  returning run_id
), tasks as (
  insert into pgflow.step_tasks (run_id, flow_slug, step_slug, not_before)
  select run_id, 'llm_request_workflow', 'validate', 'infinity' from runs returning run_id
)
insert into nexus.parked (run_id, scope, lane, agent_id, since, step_slug)
select run_id, 'openai', 1, 'agent ' || (row_number() over ()) % {agents}, now(), 'validate' from tasks
"""


async def pages(db: Database, statement: str) -> int:
    """Pages of tables and indexes that a statement looked at."""
    async with db.connection() as connection:
        connection.row_factory = namedtuple_row
        cursor = await connection.execute(f"explain (analyze, buffers, timing off, format json) {statement}")
        [row] = await cursor.fetchall()
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize("agents", [1, 10_000])
async def test_a_crowd_of_parked_requests_slows_nobody(db, agents):
    worker = await a_worker(db)
    message = json.dumps({"request_id": str(uuid4()), "messages": "Hello"})
    statements = {
        "take": f"select * from nexus.take_parked('{worker}', 'openai', 10)",
        "scopes": "select nexus.parked_scopes('', 10)",
        "due": "select pgflow.send_due_tasks(1000)",
        "lanes": f"select * from nexus.take_requests('{worker}', 10, 10)",
    }
    looked: dict[int, dict[str, int]] = {}
    for many in (1_000, 99_000):
        await sql(db, CROWD.format(many=many, agents=min(agents, many)))
        await put(db, "ai_requests", message)
        await sql(db, "analyze")
        looked[many] = {name: await pages(db, statement) for name, statement in statements.items()}
        [plan] = await sql(db, "select count(*) from nexus.parked")
        assert plan.count in (990, 99_980)
    print(looked)
    for name in statements:
        assert looked[99_000][name] <= looked[1_000][name] * 2 + 20, name
    assert looked[99_000]["take"] < 2_000
