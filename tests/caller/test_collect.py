"""Results are handed out to whom they are wanted; all are stored."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import pytest

from tests.system import messages, put, sql


def answer(request_id: UUID, text: str = "Hi") -> str:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    told = {
        "request_id": str(request_id),
        "status": "success",
        "response": text,
        "usage": usage,
        "attempts": 1,
    }
    return json.dumps(told)


async def collect(db, wanted):
    rows = await db.query(
        "collect_results", {"queue": "ai_results", "limit": 9, "notify": True, "wanted": wanted}
    )
    assert rows[0].request_id is None
    assert rows[0].taken == len(rows) - 1
    return {row.request_id: row.result and row.result["response"] for row in rows[1:]}


async def test_only_what_is_wanted_is_handed_out(db):
    mine, other = uuid4(), uuid4()
    await put(db, "ai_results", answer(mine), answer(other))
    assert await collect(db, [mine, uuid4()]) == {mine: "Hi", other: None}
    stored = await sql(db, "select output ->> 'response' as text, total_tokens from pgnexus.job_results")
    assert stored == [("Hi", 3), ("Hi", 3)]


@pytest.mark.parametrize("wanted", [[], None])
async def test_nothing_or_all_may_be_wanted(db, wanted):
    request_id = uuid4()
    await put(db, "ai_results", answer(request_id))
    assert await collect(db, wanted) == {request_id: "Hi" if wanted is None else None}


async def test_processes_of_earlier_versions_get_all(db):
    request_id = uuid4()
    await put(db, "ai_results", answer(request_id, "Old"))
    rows = await sql(db, "select taken, request_id, result from pgnexus.take_results('ai_results', 9, true)")
    assert [(row.taken, row.request_id) for row in rows] == [(1, None), (1, request_id)]
    assert rows[1].result["response"] == "Old"


async def test_what_says_no_more_than_its_absence_does_not_travel(db):
    plain = {
        "messages": [{"role": "user", "content": "x"}],
        "model": "auto",
        "provider": "auto",
        "reply_to": "ai_results",
    }
    bodies = [json.dumps(plain), json.dumps({**plain, "model": "gpt-4o", "provider": "openai"})]
    await db.query("enqueue", {"requests": bodies, "notify": True})
    sent = await messages(db, "ai_requests")
    assert [one.get("model") for one in sent] == [None, "gpt-4o"]
    assert [one.get("provider") for one in sent] == [None, "openai"]
    assert not any("reply_to" in one for one in sent)
    stored = await sql(
        db, "select model, input ->> 'reply_to' as reply_to from pgnexus.job_results order by model"
    )
    assert stored == [("auto", "ai_results"), ("gpt-4o", "ai_results")]
