"""Answers that are given again, and requests of the same words that are asked once."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from uuid import UUID

import pytest
from aiohttp import web
from provider_server import answer, served
from system import answered, put, running, sql, started, until

from pgnexus.db.database import Database
from pgnexus.errors import RequestCancelled, RequestFailed
from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.nexus.savings import saving_key
from pgnexus.nexus.selection import Candidate
from pgnexus.policy import RouteSettings

CANDIDATES = (Candidate("openai", "gpt-4o"),)
LOOK_UP = "select how from nexus.look_up(%s, '1', true, true)"
ROUTE = RouteSettings(models=["openai/gpt-4o"])


def request(text: str = "Hello", **fields: object) -> LLMRequest:
    message = {"role": "user", "content": text}
    return LLMRequest.model_validate({"request_id": new_request_id(), "messages": [message]} | fields)


class TestTheKey:
    @pytest.mark.parametrize(
        "fields",
        [
            {"text": "Hello!"},
            {"temperature": 0.1},
            {"max_tokens": 5},
            {"top_p": 0.5},
            {"stop": "x"},
            {"seed": 1},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"tool_choice": "required"},
            {"response_format": {"type": "json_object"}},
            {"api_version": "responses"},
            {"agent_id": "a"},
            {"something_new": 1},
        ],
    )
    def test_it_holds_everything_that_matters(self, fields):
        text = fields.pop("text", "Hello")
        assert saving_key(request(text, **fields), CANDIDATES, ROUTE) != saving_key(
            request(), CANDIDATES, ROUTE
        )

    @pytest.mark.parametrize(
        "fields",
        [
            {"priority": "batch"},
            {"deadline": "2035-01-01T00:00:00Z"},
            {"traceparent": "x"},
            {"metadata": {"a": 1}},
            {"reply_to": "elsewhere"},
            {"cache": 5.0, "single_flight": True},
        ],
    )
    def test_it_holds_nothing_else(self, fields):
        assert saving_key(request(**fields), CANDIDATES, ROUTE) == saving_key(request(), CANDIDATES, ROUTE)

    def test_other_candidates_are_another_question(self):
        more = (*CANDIDATES, Candidate("xai", "grok"))
        assert saving_key(request(), more, ROUTE) != saving_key(request(), CANDIDATES, ROUTE)

    def test_the_order_of_the_candidates_is_no_part_of_the_question(self):
        one, other = CANDIDATES[0], Candidate("xai", "grok")
        assert saving_key(request(), (one, other), ROUTE) == saving_key(request(), (other, one), ROUTE)

    def test_a_route_may_share_with_all_agents(self):
        route = ROUTE.model_copy(update={"share": "all"})
        keys = {saving_key(request(agent_id=agent), CANDIDATES, route) for agent in ("a", "b", None)}
        assert len(keys) == 1


async def test_an_answer_is_given_again_and_costs_nothing(database_url, llmock, db):
    llmock.reply("One.")
    async with running(database_url, llmock.base_url()) as llm:
        first = await llm.call("simple", "Hello", cache=60.0, model="gpt-4o")
        llmock.reply("Two.")
        again = await llm.call("simple", "Hello", cache=60.0, model="gpt-4o")
        asked_anew = await llm.call("simple", "Hello", model="gpt-4o")
        stored = await llm.job_result(again.request_id)
    assert (first.text, first.cached, first.attempts) == ("One.", False, 1)
    assert (again.text, again.cached, again.shared, again.attempts) == ("One.", True, False, 0)
    assert (again.cost, again.usage.total_tokens, again.model) == (Decimal(0), 0, first.model)
    assert asked_anew.text == "Two."
    assert (stored.cost, stored.to_result().cached) == (Decimal(0), True)
    assert await sql(db, "select count(*) from nexus.attempts") == [(2,)]


async def test_a_whole_message_is_kept(database_url, llmock):
    call = {"name": "look_up", "arguments": {"city": "Paris"}}
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    llmock.call_tool(call["name"], call["arguments"])
    async with running(database_url, llmock.base_url()) as llm:
        results = [await llm.call("simple", "Where?", cache=60.0, tools=tools) for _ in range(2)]
    assert results[1].cached
    assert results[1].tool_calls == results[0].tool_calls != []
    assert results[1].finish_reason == results[0].finish_reason


async def test_its_time_is_over_when_it_is_over(database_url, llmock, db):
    async with running(database_url, llmock.base_url()) as llm:
        await llm.call("simple", "Hello", cache=60.0)
        await sql(db, "update nexus.answers set keep_until = clock_timestamp() - interval '1 second'")
        assert not (await llm.call("simple", "Hello", cache=60.0)).cached
        assert (await llm.call("simple", "Hello", cache=60.0)).cached


async def test_it_is_not_given_to_another_agent(database_url, llmock):
    async with running(database_url, llmock.base_url()) as llm:
        await llm.call("simple", "Hello", cache=60.0, agent_id="a")
        assert not (await llm.call("simple", "Hello", cache=60.0, agent_id="b")).cached
        assert not (await llm.call("simple", "Hello", cache=60.0)).cached
        assert (await llm.call("simple", "Hello", cache=60.0, agent_id="a")).cached


async def test_a_route_may_ask_for_it_and_share_it(database_url, llmock):
    routes = {"simple": {"models": ["openai/gpt-4o"], "cache": 60.0, "share": "all"}}
    async with running(database_url, llmock.base_url(), routes=routes, default_provider=None) as llm:
        await llm.call("simple", "Hello", agent_id="a")
        assert (await llm.call("simple", "Hello", agent_id="b")).cached
        assert not (await llm.call("medium", "Hello", agent_id="b", model="openai/gpt-4o")).cached


async def test_failures_are_not_kept(database_url, llmock):
    async with running(database_url, llmock.base_url()) as llm:
        llmock.fail(400, times=1)
        handle = await llm.enqueue("simple", "Hello", cache=60.0)
        with pytest.raises(Exception, match="400"):
            await handle.result(10)
        assert not (await llm.call("simple", "Hello", cache=60.0)).cached


async def test_what_is_asked_at_once_is_asked_once_on_any_worker(database_url, llmock, db):
    llmock.delay(0.5)
    async with started(database_url, llmock.base_url()) as one, started(database_url, llmock.base_url()):
        handles = [await one.service.enqueue("simple", "Hello", single_flight=True) for _ in range(12)]
        results = await asyncio.gather(*(handle.result(20) for handle in handles))
        later = await one.service.call("simple", "Hello", single_flight=True)
    assert len({result.text for result in results}) == 1
    assert sorted(result.shared for result in results) == [False] + [True] * 11
    assert {result.cost for result in results if result.shared} == {Decimal(0)}
    assert (later.shared, later.cached) == (False, False)
    assert await sql(db, "select count(*) from nexus.attempts") == [(2,)]
    assert await sql(db, "select count(*) from nexus.flights") == [(0,)]
    assert await sql(db, "select count(*) from nexus.parked") == [(0,)]


async def test_a_cancelled_leader_hands_over(database_url, llmock, db):
    llmock.delay(30.0)
    async with running(database_url, llmock.base_url()) as llm:
        leader = await llm.enqueue("simple", "Hello", single_flight=True)
        await until(lambda: sql(db, "select 1 from nexus.flights"))
        followers = [await llm.enqueue("simple", "Hello", single_flight=True) for _ in range(3)]

        async def parked() -> bool:
            return await sql(db, "select count(*) from nexus.parked") == [(3,)]

        await until(parked)
        await leader.cancel()
        with pytest.raises(RequestCancelled):
            await leader.result(5)
        results = await asyncio.gather(*(handle.result(20) for handle in followers))
    assert sorted(result.shared for result in results) == [False, True, True]


async def test_a_leader_that_fails_hands_over(database_url, db):
    may_fail = asyncio.Event()
    calls = 0

    async def vendor(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls > 1:
            return web.json_response(answer())
        await may_fail.wait()
        return web.json_response({"error": {"message": "no"}}, status=400)

    async with served(vendor) as url, running(database_url, url) as llm:
        leader = await llm.enqueue("simple", "Hello", single_flight=True)
        await until(lambda: sql(db, "select 1 from nexus.flights"))
        follower = await llm.enqueue("simple", "Hello", single_flight=True)
        await until(lambda: sql(db, "select 1 from nexus.parked"))
        may_fail.set()
        with pytest.raises(RequestFailed, match="400"):
            await leader.result(10)
        assert (await follower.result(10)).ok
    assert calls == 2


async def test_a_foreign_request_saves_too(database_url, llmock, db):
    await sql(db, "select nexus_api.create_queue('answers')")
    message = {"messages": [{"role": "user", "content": "Hi"}], "reply_to": "answers", "cache": 60}
    async with started(database_url, llmock.base_url(), caller=False):
        for _ in range(2):
            await put(db, "ai_requests", json.dumps(message | {"request_id": str(new_request_id())}))
            await until(lambda: sql(db, "select 1 from nexus.answers"))
        found = await answered(db, "answers", 2)
    assert sorted(bool(result.get("cached")) for result in found) == [False, True]


async def test_who_asked_for_no_kept_answer_gets_none(database_url, llmock):
    async with running(database_url, llmock.base_url()) as llm:
        await llm.call("simple", "Hello", cache=60.0)
        assert not (await llm.call("simple", "Hello", single_flight=True)).cached


async def test_a_leader_that_is_given_anothers_answer_leads_no_more(database_url, db):
    """It had failed once; a stream, which follows nobody, brought the answer before it tried again."""
    calls = 0

    async def vendor(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            return web.json_response({"error": {"message": "no"}}, status=503)
        return web.json_response(answer())

    async with served(vendor) as url, running(database_url, url, retry_base_delay=3600.0) as llm:
        leader = await llm.enqueue("simple", "Hello", model="gpt-4o", cache=60.0)
        await until(lambda: sql(db, "select 1 from pgflow.step_tasks where not_before > now()"))
        follower = await llm.enqueue("simple", "Hello", model="gpt-4o", cache=60.0)
        await until(lambda: sql(db, "select 1 from nexus.parked"))
        async with llm.stream("simple", "Hello", model="gpt-4o", cache=60.0) as stream:
            assert (await stream.result()).ok
        await sql(db, "update pgflow.step_tasks set not_before = now() where not_before < 'infinity'")
        assert (await leader.result(10)).shared
        assert (await follower.result(10)).shared
    assert await sql(db, "select count(*) from nexus.flights") == [(0,)]
    assert calls == 2


async def test_nobody_follows_a_leader_that_is_gone(database_url, llmock, db):
    """Its run was ended by somebody who knows of no flights."""
    async with running(database_url, llmock.base_url()) as llm:
        done = await llm.call("simple", "Hello")
    await sql(db, "insert into nexus.flights (key, request_id) values ('1', %s)", done.request_id)
    assert await sql(db, LOOK_UP, await under_way(db)) == [("lead",)]


async def test_a_request_that_has_ended_leads_nobody(database_url, llmock, db):
    """A worker that was taken for dead goes on with it."""
    async with running(database_url, llmock.base_url()) as llm:
        done = await llm.call("simple", "Hello")
    assert await sql(db, LOOK_UP, done.request_id) == [("none",)]
    assert await sql(db, "select count(*) from nexus.flights") == [(0,)]


async def test_a_request_that_ends_while_it_is_looked_up_leaves_no_flight(database_url, llmock, db):
    async with running(database_url, llmock.base_url()) as llm:
        await llm.call("simple", "Hello")
    request_id = await under_way(db)
    end = "update pgflow.runs set status = 'failed', failed_at = now() where run_id = %s"
    async with db.connection() as connection, connection.transaction():
        await connection.execute(LOOK_UP, [request_id])
        ending = asyncio.create_task(sql(db, end, request_id))
        await until(lambda: sql(db, "select 1 from pg_locks where not granted"))
    await ending
    assert await sql(db, "select count(*) from nexus.flights") == [(0,)]


async def test_an_answer_that_comes_while_it_is_looked_for_is_shared(database_url, llmock, db):
    """It is stored, and its flight gone, after the look at the answers and before that at the flights."""
    async with running(database_url, llmock.base_url()) as llm:
        await llm.call("simple", "Hello")
    leader, other = await under_way(db), await under_way(db)
    assert await sql(db, LOOK_UP, leader) == [("lead",)]
    async with db.connection() as connection, connection.transaction():
        await connection.execute(
            "insert into nexus.answers (key, answer, gone_at) values ('1', '{}', now() + interval '1 hour')"
        )
        await connection.execute("delete from nexus.flights")
        looking = asyncio.create_task(sql(db, LOOK_UP, other))
        await until(lambda: sql(db, "select 1 from pg_locks where not granted"))
    assert await looking == [("shared",)]
    assert await sql(db, "select count(*) from nexus.flights") == [(0,)]


async def under_way(db: Database) -> UUID:
    """A request that a worker has."""
    request_id = new_request_id()
    await sql(
        db,
        """insert into pgflow.runs (flow_slug, run_id, input, remaining_steps)
           values ('llm_request_workflow', %s, '{}', 4)""",
        request_id,
    )
    return request_id


async def test_what_is_kept_goes_when_its_time_is_over(database_url, llmock, db):
    async with running(database_url, llmock.base_url(), chunk_ttl=1.0) as llm:
        await llm.call("simple", "Hello", cache=60.0)
        await sql(db, "update nexus.answers set gone_at = clock_timestamp() - interval '1 second'")

        async def gone() -> bool:
            return await sql(db, "select count(*) from nexus.answers") == [(0,)]

        await until(gone)
