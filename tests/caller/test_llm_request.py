"""LlmRequest: one LLM call as a flow of four steps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgnexus.app import App
from pgnexus.caller.workflow import LLMCall, LlmRequest, select_model
from pgnexus.errors import InvalidRequest, RunFailed
from pgnexus.flow.define.graph import Flow
from pgnexus.messages import LLMResult
from tests.system import fast, sql, until


def app(database_url: str, provider: str | None = None, *flows: Flow) -> App:
    return App(fast(database_url, provider), nexus=provider is not None, flows=flows, executor=True)


@pytest.fixture
async def running(database_url, llmock):
    """An `App` that runs `LlmRequest`, with a nexus side beside it."""
    running = app(database_url, llmock.base_url(), LlmRequest)
    await running.start()
    yield running
    await running.stop()


async def test_four_steps_give_the_result_and_a_job_result(running, db, llmock):
    llmock.reply("Paris.")
    handle = await running.executor.start(
        LlmRequest, {"prompt": "Where?", "system": "Be brief", "task_type": "architect", "agent_id": "a1"}
    )
    result = await handle.result(timeout=15)
    assert type(result) is LLMResult
    assert (result.text, result.status, result.provider) == ("Paris.", "success", "openai")
    steps = [(step.slug, step.status) for step in (await handle.status()).steps]
    assert steps == [
        (name, "completed")
        for name in ("receive_request", "select_model", "call_llm_provider", "publish_result")
    ]
    stored = await running.service.job_result(result.request_id)
    assert stored.workflow == "LlmRequest"
    assert stored.instance_id == running.flows.registry.instance_id()
    assert stored.job_id == f"{handle.run_id}/call_llm_provider"
    assert (stored.complexity, stored.task_type, stored.agent_id) == ("complex", "architect", "a1")
    assert stored.to_result() == result
    assert [one["role"] for one in llmock.last_request.body["messages"]] == ["system", "user"]
    assert [row.request_id for row in await running.service.search(workflow="LlmRequest")] == [
        result.request_id
    ]


async def test_whoever_knows_only_its_name_gets_the_fields(running, database_url, llmock):
    llmock.reply("Paris.")
    other = app(database_url)
    await other.start()
    try:
        given = {"messages": [{"role": "user", "content": "Where?"}], "complexity": "simple"}
        output = (await other.executor.execute("llm_request", given, timeout=15))["publish_result"]
    finally:
        await other.stop()
    assert output["response"] == output["message"]["content"] == "Paris."
    assert output.keys() >= {
        "request_id",
        "status",
        "model",
        "provider",
        "usage",
        "cost",
        "latency_ms",
        "finish_reason",
    }
    assert LLMResult.model_validate(output).cost > 0


async def test_a_flow_of_ones_own_asks_by_it(database_url, llmock):
    """Every worker runs it, beside flows of code."""
    own = Flow("own")

    @own.step
    def nothing(input: int) -> int:
        return input

    both = app(database_url, llmock.base_url(), own)
    await both.start()
    try:
        result = await both.executor.execute(LlmRequest, {"prompt": "Hello", "model": "gpt-4o"}, timeout=15)
    finally:
        await both.stop()
    assert result.model == "gpt-4o"


async def test_options_reach_the_provider(running, llmock):
    await running.executor.execute(
        LlmRequest,
        {
            "prompt": "Hello",
            "complexity": "simple",
            "temperature": 0.5,
            "max_tokens": 10,
            "response_format": {"type": "json_object"},
        },
        timeout=15,
    )
    body = llmock.last_request.body
    assert (body["temperature"], body["response_format"]) == (0.5, {"type": "json_object"})


async def test_a_failed_call_fails_the_run(running, db, llmock):
    llmock.fail(401, times=None)
    with pytest.raises(RunFailed, match="call_llm_provider: authentication_failed: "):
        await running.executor.execute(LlmRequest, {"prompt": "Hello"}, timeout=15)
    [row] = await sql(db, "select status, workflow from pgnexus.job_results")
    assert (row.status, row.workflow) == ("failed", "LlmRequest")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give a prompt or messages, and not both"),
        ({"prompt": "Hello", "messages": []}, "give a prompt or messages, and not both"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "role"),
        ({"prompt": "Hello", "complexity": "easy"}, "complexity"),
        ({"prompt": "Hello", "temperature": 9}, "temperature"),
        ({"prompt": "Hello", "timeout": -1}, "timeout"),
        ({"prompt": "Hello", "temprature": 1}, "temprature"),
        (None, "input"),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_anything_is_stored(running, db, given, message):
    with pytest.raises(InvalidRequest, match=message):
        await running.executor.start(LlmRequest, given)
    assert not await sql(db, "select 1 from pgflow.runs")


async def test_what_others_start_wrongly_fails_in_its_first_step(running, db):
    [row] = await sql(
        db, "select * from pgflow.start_flow('llm_request', %s::text::jsonb)", json.dumps({"prompt": 1})
    )

    async def failed() -> Any:
        rows = await sql(
            db,
            "select step_slug, error_message from pgflow.step_states where run_id = %s and status = 'failed'",
            row.run_id,
        )
        return rows or None

    [step] = await until(failed)
    assert step.step_slug == "receive_request"
    assert "prompt" in step.error_message
    assert not await sql(db, "select 1 from pgnexus.job_results")


def test_a_model_is_selected_unless_one_is_named():
    def chosen(**given: Any) -> tuple[Any, ...]:
        call = select_model(LLMCall(prompt="x", **given))
        return call.complexity, call.model, call.provider

    assert chosen() == ("medium", "auto", "auto")
    assert chosen(task_type="classifier") == ("simple", "auto", "auto")
    assert chosen(complexity="complex", task_type="classifier") == ("complex", "auto", "auto")
    assert chosen(model="gpt-4o", provider="openai") == ("medium", "gpt-4o", "openai")
