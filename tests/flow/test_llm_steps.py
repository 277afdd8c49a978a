"""LLM steps: a prompt becomes a request, and the result that is stored ends the task."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from pgnexus.app import App
from pgnexus.db.database import Database
from pgnexus.errors import RunCancelled, RunFailed
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.prompt import Prompt
from pgnexus.messages import LLMResult
from tests.flow.running import tasks
from tests.survival.processes import up
from tests.system import fast, put, sql, until


class Review(BaseModel):
    grade: int


@asynccontextmanager
async def started(
    database_url: str, *flows: Blueprint, provider: str | None = None, **settings: Any
) -> AsyncIterator[App]:
    """An `App` with a worker for these flows; with a nexus side if there is a provider to ask."""
    nexus = provider is not None
    app = App(fast(database_url, provider, **settings), nexus=nexus, flows=flows)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


def asking(returns: Any = str, **settings: Any) -> Flow:
    flow = Flow("asking", base_delay=0)

    @flow.llm(returns=returns, **settings)
    def answer(input: str) -> Prompt:
        return Prompt(input, complexity="simple")

    return flow


def asking_all(**settings: Any) -> Flow:
    flow = Flow("asking_all", base_delay=0)

    @flow.step
    def questions(input: int) -> list[str]:
        return [f"Question {n}" for n in range(input)]

    @flow.llm(over=questions, **settings)
    def answers(question: str) -> Prompt:
        return Prompt(question, complexity="simple")

    @flow.step
    def together(answers: list[str] | None = None) -> list[str] | None:
        return answers

    return flow


async def requests(db: Database, *, at_least: int = 1, within: float = 15.0) -> list[Any]:
    """The stored requests in the order of their tasks, as soon as there are so many."""

    async def stored() -> list[Any] | None:
        rows = await sql(db, "select * from pgnexus.job_results order by job_id, enqueued_at")
        return rows if len(rows) >= at_least else None

    return await until(stored, within)  # type: ignore[no-any-return]


async def answer(db: Database, request_id: Any, text: str = "fine", **over: Any) -> None:
    """A result as the nexus side would publish it."""
    message = {"request_id": str(request_id), "status": "success", "response": text} | over
    await put(db, "ai_results", json.dumps(message))


def failure(kind: str = "provider_error", *, retryable: bool = False) -> dict[str, Any]:
    return {
        "status": "failed",
        "response": None,
        "error": {"type": kind, "message": "it said no", "retryable": retryable},
    }


class TestAnswers:
    async def test_the_text_of_the_answer_is_the_output(self, database_url, db, llmock):
        llmock.reply("Paris.")
        async with started(database_url, asking(), provider=llmock.base_url()) as app:
            handle = await app.executor.start("asking", "What is the capital of France?")
            assert await handle.result(timeout=15) == "Paris."
            instance = app.flows.registry.instance_id()
        [row] = await requests(db)
        assert (row.workflow, row.instance_id, row.job_id) == ("asking", instance, f"{handle.run_id}/answer")
        assert (row.status, row.complexity, row.request_id.version) == ("success", "simple", 7)
        assert llmock.last_request.body["messages"] == [
            {"role": "user", "content": "What is the capital of France?"}
        ]

    async def test_the_json_of_the_answer_is_the_output(self, database_url, llmock):
        llmock.reply('{"grade": 3}')
        async with started(database_url, asking(Review), provider=llmock.base_url()) as app:
            assert await app.executor.execute("asking", "How is it?", timeout=15) == Review(grade=3)
        assert llmock.last_request.body["response_format"]["type"] == "json_schema"

    async def test_what_is_no_object_travels_in_a_field_of_one(self, database_url, llmock):
        llmock.reply('{"value": ["a", "b"]}')
        async with started(database_url, asking(list[str]), provider=llmock.base_url()) as app:
            assert await app.executor.execute("asking", "Which?", timeout=15) == ["a", "b"]

    async def test_the_whole_result_is_the_output(self, database_url, db, llmock):
        llmock.reply("Paris.")
        async with started(database_url, asking(LLMResult), provider=llmock.base_url()) as app:
            handle = await app.executor.start("asking", "Where?")
            result = await handle.result(timeout=15)
            stored = await app.service.job_result((await requests(db))[0].request_id)
        assert result == stored.to_result()
        assert result.cost > 0
        assert result.usage.total_tokens > 0

    async def test_a_map_of_twenty_prompts(self, database_url, db, llmock):
        async with started(database_url, asking_all(), provider=llmock.base_url()) as app:
            handle = await app.executor.start("asking_all", 20)
            output = await handle.result(timeout=15)
        rows = await requests(db)
        assert {row.job_id for row in rows} == {f"{handle.run_id}/answers/{n}" for n in range(20)}
        by_index = {int(row.job_id.rsplit("/", 1)[1]): row for row in rows}
        assert output == [by_index[n].output["response"] for n in range(20)]
        assert [by_index[n].input["messages"][0]["content"] for n in range(20)] == [
            f"Question {n}" for n in range(20)
        ]

    @pytest.mark.parametrize(
        ("text", "returns", "output"),
        [
            ("null", "json", None),
            ("0", "json", 0),
            ('```json\n{"grade": 1}\n```', "json", {"grade": 1}),
            ("[1]", "json", [1]),
            ("", "text", ""),
            ("null", "text", "null"),
        ],
    )
    async def test_answers_that_look_like_nothing_come_as_what_they_are(self, db, text, returns, output):
        [row] = await sql(
            db,
            "select a.* from jsonb_populate_record(null::pgnexus.job_results, %s::text::jsonb) j,"
            " pgnexus.step_answer(j, jsonb_build_object('as', %s::text)) a",
            json.dumps({"status": "success", "output": {"response": text}}),
            returns,
        )
        assert (row.output, row.error) == (output, None)


class TestFailures:
    async def test_a_failure_that_may_pass_is_asked_again(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "Where?")
            [first] = await requests(db)
            await answer(db, first.request_id, **failure("rate_limited", retryable=True))
            _, second = await requests(db, at_least=2)
            [task] = await tasks(db, handle.run_id)
            assert (task.status, task.attempts, task.error) == ("started", 2, "rate_limited: it said no")
            await answer(db, second.request_id, "Paris.")
            assert await handle.result(timeout=15) == "Paris."

    async def test_a_failure_for_good_fails_the_run(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "Where?")
            [row] = await requests(db)
            await answer(db, row.request_id, **failure())
            with pytest.raises(RunFailed, match="provider_error: it said no"):
                await handle.result(timeout=15)
        assert len(await requests(db)) == 1

    async def test_a_failure_for_good_is_skipped_where_the_step_says_so(self, database_url, db):
        flow = asking(when_exhausted="skip")

        @flow.step
        def after(answer: str | None = None) -> str:
            return answer or "no answer"

        async with started(database_url, flow) as app:
            handle = await app.executor.start("asking", "Where?")
            [row] = await requests(db)
            await answer(db, row.request_id, **failure())
            assert await handle.result(timeout=15) == "no answer"

    async def test_what_is_not_json_is_asked_again_while_attempts_are_left(self, database_url, db):
        async with started(database_url, asking(Review, max_attempts=2)) as app:
            handle = await app.executor.start("asking", "How is it?")
            [first] = await requests(db)
            await answer(db, first.request_id, "I would say 3")
            _, second = await requests(db, at_least=2)
            await answer(db, second.request_id, '{"grade": ')
            with pytest.raises(RunFailed, match=r'the answer is not JSON: \{"grade": '):
                await handle.result(timeout=15)

    async def test_json_without_the_field_is_asked_again(self, database_url, db):
        async with started(database_url, asking(list[str], max_attempts=1)) as app:
            handle = await app.executor.start("asking", "Which?")
            [row] = await requests(db)
            await answer(db, row.request_id, '{"values": []}')
            with pytest.raises(RunFailed, match='no field "value"'):
                await handle.result(timeout=15)

    async def test_a_request_past_its_deadline_ends_its_step(self, database_url, db):
        async with started(database_url, asking(max_attempts=1, timeout=0.2)) as app:
            with pytest.raises(RunFailed, match="timeout: its deadline passed before an answer came"):
                await app.executor.execute("asking", "Where?", timeout=15)
        [row] = await requests(db)
        assert row.status == "timeout"

    async def test_a_cancelled_request_fails_its_step(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "Where?")
            [row] = await requests(db)
            assert await app.service.cancel(row.request_id)
            with pytest.raises(RunFailed, match="cancelled: cancelled by the caller"):
                await handle.result(timeout=15)

    async def test_a_prompt_that_cannot_be_sent_fails_its_task_and_no_other(self, database_url, db):
        flow = Flow("mixed")

        @flow.llm
        def answer(input: int) -> Prompt:
            return Prompt("x" * input, complexity="simple")

        async with started(database_url, flow, max_message_bytes=2000) as app:
            handles = [await app.executor.start("mixed", size) for size in (5000, 5)]
            with pytest.raises(RunFailed, match=r"InvalidRequest: .* more than max_message_bytes"):
                await handles[0].result(timeout=15)
            [row] = await requests(db)
            assert row.job_id == f"{handles[1].run_id}/answer"

    async def test_a_later_of_a_step_that_is_none_is_refused(self, database_url, db):
        flow = Flow("wrong")

        @flow.step
        def step(input: Any) -> Later:
            return Later(60, "llm", input)

        async with started(database_url, flow) as app:
            for details in (None, {"as": "text"}):
                with pytest.raises(RunFailed, match=r"InvalidRequest: .* use @flow\.llm"):
                    await app.executor.execute("wrong", details, timeout=15)


class TestEndsOfRuns:
    async def test_cancelling_a_run_cancels_its_requests(self, database_url, db):
        async with started(database_url, asking_all(), poll_interval=60.0) as app:
            handle = await app.executor.start("asking_all", 3)
            await requests(db, at_least=3)
            assert await handle.cancel()
            with pytest.raises(RunCancelled):
                await handle.result(timeout=15)
            await until(lambda: _all_are(db, "cancelled"))
        assert not await sql(db, "select 1 from pgnexus.abandoned_requests")

    async def test_a_run_that_fails_cancels_what_it_still_asks(self, database_url, db):
        async with started(database_url, asking_all(), poll_interval=60.0) as app:
            handle = await app.executor.start("asking_all", 3)
            _, second, _ = await requests(db, at_least=3)
            await answer(db, second.request_id, **failure())
            with pytest.raises(RunFailed):
                await handle.result(timeout=15)

            async def others_cancelled() -> bool:
                return [row.status for row in await requests(db)] == ["cancelled", "failed", "cancelled"]

            await until(others_cancelled)
        assert not await sql(db, "select 1 from pgnexus.abandoned_requests")

    async def test_deleting_a_flow_cancels_its_requests(self, database_url, db):
        async with started(database_url, asking(), poll_interval=60.0) as app:
            await app.executor.start("asking", "Where?")
            await requests(db)
            await sql(db, "select pgflow.delete_flow_and_data('asking')")
            await until(lambda: _all_are(db, "cancelled"))

    async def test_a_request_that_is_being_ended_is_left_to_the_next_sweep(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "Where?")
            await requests(db)
        async with db.connection() as poller, poller.transaction():
            await poller.execute("select 1 from pgnexus.job_results for update")
            await sql(db, "select pgflow.cancel_run(%s)", handle.run_id)
            await sql(db, "select pgnexus.sweep(100)")
            assert await sql(db, "select 1 from pgnexus.abandoned_requests")
        await sql(db, "select pgnexus.sweep(100)")
        assert (await requests(db))[0].status == "cancelled"
        assert not await sql(db, "select 1 from pgnexus.abandoned_requests")

    async def test_a_retried_run_asks_anew(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "Where?")
            [first] = await requests(db)
            await handle.cancel()
            assert await handle.retry()
            _, second = await requests(db, at_least=2)
            await answer(db, first.request_id, "late")
            await answer(db, second.request_id, "Paris.")
            assert await handle.result(timeout=15) == "Paris."


async def _all_are(db: Database, status: str) -> bool:
    return {row.status for row in await requests(db)} == {status}


class TestOneBatch:
    """The poller's batch ends what it can, whatever becomes of the runs."""

    async def test_dead_runs_do_not_undo_the_results_of_others(self, database_url, db):
        async with started(database_url, asking()) as app:
            handles = [await app.executor.start("asking", text) for text in "abc"]
            rows = {row.input["messages"][0]["content"]: row for row in await requests(db, at_least=3)}
        await sql(db, "select pgflow.cancel_run(%s)", handles[0].run_id)
        for table in ("step_tasks", "step_states", "runs"):
            await sql(db, f"delete from pgflow.{table} where run_id = %s", handles[1].run_id)
        taken = await _take(db, *(rows[text].request_id for text in "abc"))
        assert taken == {rows[text].request_id for text in "abc"}
        assert {row.status for row in await requests(db)} == {"success"}
        [run] = await sql(db, "select status, output from pgflow.runs where run_id = %s", handles[2].run_id)
        assert (run.status, run.output) == ("completed", {"answer": "fine"})

    async def test_a_fault_in_one_run_fails_that_run_alone(self, database_url, db):
        async with started(database_url, asking()) as app:
            handles = [await app.executor.start("asking", text) for text in "abc"]
            rows = await requests(db, at_least=3)
        await sql(
            db,
            """
            create function pg_temp_fault() returns trigger language plpgsql as $$
            begin
              if new.status = 'completed' and new.output = '"bad"' then raise exception 'this cannot be stored'; end if;
              return new;
            end $$;
            create trigger fault before update on pgflow.step_states for each row execute function pg_temp_fault();
            """,
        )
        await _take(db, *(row.request_id for row in rows), text=["bad", "good", "good"])
        runs = await sql(db, "select run_id, status from pgflow.runs")
        assert sorted(run.status for run in runs) == ["completed", "completed", "failed"]
        [failed] = [run for run in runs if run.status == "failed"]
        assert rows[0].job_id == f"{failed.run_id}/answer"
        [task] = await tasks(db, failed.run_id)
        assert task.error == "the answer cannot be taken in: this cannot be stored"
        assert {row.status for row in await requests(db)} == {"success"}
        assert len(handles) == 3

    async def test_what_cannot_even_be_failed_is_left_to_its_deadline(self, database_url, db):
        async with started(database_url, asking()) as app:
            await app.executor.start("asking", "a")
            [row] = await requests(db)
        await sql(
            db,
            """
            create function stuck() returns trigger language plpgsql as $$ begin raise exception 'stuck'; end $$;
            create trigger stuck before update on pgflow.step_tasks for each row execute function stuck();
            """,
        )
        await _take(db, row.request_id)
        [row] = await requests(db)
        assert row.status == "success"
        [task] = await sql(db, "select deferred_until from pgflow.step_tasks")
        assert task.deferred_until is not None

    async def test_a_result_that_comes_twice_completes_once(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "a")
            [row] = await requests(db)
            await _take(db, row.request_id, row.request_id, text=["first", "second"])
            await _take(db, row.request_id, text=["third"])
            assert await handle.result(timeout=15) == "first"

    async def test_answers_and_failures_of_one_map_go_together(self, database_url, db):
        async with started(database_url, asking_all(max_attempts=1, when_exhausted="skip")) as app:
            handle = await app.executor.start("asking_all", 4)
            rows = await requests(db, at_least=4)
            await _take(
                db,
                *(row.request_id for row in rows),
                over=[{}, failure(), {}, failure()],
            )
            steps = {step.slug: step for step in (await handle.status()).steps}
        assert steps["answers"].status == "skipped"


async def _take(db: Database, *request_ids: Any, text: list[str] | None = None, over: Any = None) -> set[Any]:
    """Record results in one transaction; the ids of those that ended their request."""
    texts = text or ["fine"] * len(request_ids)
    extra = over or [{}] * len(request_ids)
    bodies = [
        json.dumps({"request_id": str(one), "status": "success", "response": said} | more)
        for one, said, more in zip(request_ids, texts, extra, strict=True)
    ]
    rows = await sql(db, "select * from pgnexus.record_results(%s::text[]::jsonb[])", bodies)
    return {row.request_id for row in rows}


class TestRoles:
    async def test_each_side_may_do_its_part(self, caller_url, nexus_url, llmock):
        llmock.reply("Paris.")
        settings = fast(nexus_url, llmock.base_url())
        nexus = App(settings, caller=False, nexus=True)
        await nexus.start()
        try:
            async with started(caller_url, asking()) as app:
                assert await app.executor.execute("asking", "Where?", timeout=15) == "Paris."
                handle = await app.executor.start("asking", "Where?")
                await handle.cancel()
        finally:
            await nexus.stop()

    async def test_the_nexus_side_may_end_steps_that_wait(self, database_url, nexus_url, db):
        async with started(database_url, asking()) as app:
            await app.executor.start("asking", "Where?")
            [row] = await requests(db)
        await sql(db, "update pgflow.step_tasks set deferred_until = now() - interval '1 s'")
        nexus = await Database.open(nexus_url)
        try:
            await sql(nexus, "select pgflow.expire_deferred(10)")
        finally:
            await nexus.close()
        [noted] = await sql(db, "select request_id from pgnexus.abandoned_requests")
        assert noted.request_id == row.request_id


class TestWaiting:
    @pytest.mark.soak
    async def test_a_thousand_waiting_steps_hold_nothing(self, database_url, db):
        busy = Flow("busy")

        @busy.step
        async def work(input: int) -> int:
            return input + 1

        async with started(database_url, asking_all(), busy, flow_concurrency=2) as app:
            handle = await app.executor.start("asking_all", 1000)
            rows = await requests(db, at_least=1000, within=90)
            await until(lambda: _idle(app))
            waiting = await sql(
                db,
                "select last_worker_id, deferral from pgflow.step_tasks"
                " where run_id = %s and deferred_until is not null",
                handle.run_id,
            )
            assert [row.last_worker_id for row in waiting] == [None] * 1000
            assert waiting[0].deferral == {"kind": "llm", "details": {"as": "text"}}  # and no second prompt
            assert not await sql(db, "select 1 from pgmq.q_asking_all")
            assert await app.executor.execute(busy, 1, timeout=15) == 2
            await _take(db, *(row.request_id for row in rows))
            assert await handle.result(timeout=30) == ["fine"] * 1000

    async def test_a_step_outlives_the_process_that_asked(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "Where?")
            [row] = await requests(db)
        await sql(db, "delete from pgflow.workers")
        await _take(db, row.request_id, text=["Paris."])
        async with started(database_url, asking()) as app:
            assert await app.executor.result(handle.run_id, timeout=15) == "Paris."

    async def test_recovery_and_retries_leave_waiting_steps_alone(self, database_url, db):
        async with started(database_url, asking()) as app:
            handle = await app.executor.start("asking", "Where?")
            [row] = await requests(db)
        await sql(db, "update pgflow.step_tasks set started_at = now() - interval '1 day'")
        await sql(db, "select pgflow.requeue_stalled_tasks()")
        await db.query("recover_tasks")
        [task] = await tasks(db, handle.run_id)
        assert (task.status, task.attempts) == ("started", 1)
        await _take(db, row.request_id)
        [run] = await sql(db, "select status from pgflow.runs where run_id = %s", handle.run_id)
        assert run.status == "completed"

    async def test_a_result_for_nobody_is_stored_as_ever(self, db):
        request_id = uuid4()
        assert await _take(db, request_id) == {request_id}


@pytest.mark.parametrize("waiting", [True, False])
async def test_killed_processes_lose_no_run(database_url, db, llmock, waiting):
    """Each process is worker, poller and nexus; killed while the provider works, or at any time."""
    llmock.delay(0.5, times=None)
    environ = {
        "PGNEXUS_FLOWS": '["pgnexus.caller.workflow:LlmRequest"]',
        "PGNEXUS_POLL_INTERVAL": "1",
        "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
        "PGNEXUS_WORKER_LEASE": "2",
        "PGNEXUS_DEFAULT_PROVIDER": "openai",
        "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
        "PGNEXUS_PROVIDERS__OPENAI__BASE_URL": llmock.base_url(),
    }
    starter = App(fast(database_url), caller=False, nexus=False, executor=True)
    await starter.start()
    try:
        async with up(database_url, **environ) as first:
            handles = [
                await starter.executor.start("llm_request", {"prompt": f"Question {n}"}) for n in range(50)
            ]
            if waiting:
                await requests(db, at_least=50)
            await first.kill()
        async with up(database_url, **environ):
            outputs = [await handle.result(timeout=60) for handle in handles]
    finally:
        await starter.stop()
    assert {output["publish_result"]["status"] for output in outputs} == {"success"}
    rows = await sql(db, "select status, job_id from pgnexus.job_results")
    assert {row.status for row in rows} == {"success"}
    assert len({row.job_id for row in rows}) == len(rows) == 50


async def _idle(app: App) -> bool:
    return app.flows.worker.in_flight == 0


async def test_two_batches_with_answers_and_failures_of_the_same_runs_do_not_wait_in_a_circle(
    database_url, db
):
    flow = asking_all(max_attempts=1)
    async with started(database_url, flow) as app:
        handles = [await app.executor.start(flow, 2) for _ in "ab"]
        rows = await requests(db, at_least=4)
    (a_0, a_1), (b_0, b_1) = ([row.request_id for row in rows[at : at + 2]] for at in (0, 2))
    await sql(
        db,
        """
        create function pause() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock_shared(7); return new; end $$;
        create trigger pause before update on pgflow.step_tasks for each row
          when (new.status = 'failed') execute function pause();
        """,
    )
    async with db.connection() as gate, gate.transaction():
        await gate.execute("select pg_advisory_xact_lock(7)")
        over = [{}, failure()]
        batches = [asyncio.ensure_future(_take(db, *ids, over=over)) for ids in ((a_0, b_0), (b_1, a_1))]
        await until(lambda: _waiting_for_locks(db, 2))  # each has taken in its answer, but not its failure
    assert [len(ended) for ended in await asyncio.gather(*batches)] == [2, 2]
    runs = await sql(db, "select status from pgflow.runs")
    assert [run.status for run in runs] == ["failed"] * len(handles)


async def _waiting_for_locks(db: Database, count: int) -> bool:
    rows = await sql(
        db,
        "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()",
    )
    return len(rows) == count
