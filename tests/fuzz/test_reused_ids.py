"""A name that is used twice, at two doors: nobody waits for ever, and no queue gets two results."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from system import answered, messages, put, running, sql

from pgnexus.errors import RequestFailed

BODY = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("taken_before", [True, False], ids=["one after the other", "in one batch"])
async def test_an_id_of_a_lane_is_used_again_by_enqueue(database_url, db, llmock, taken_before):
    await sql(db, "select nexus_api.create_queue('mine')")
    name = uuid4()
    message = json.dumps({"request_id": str(name), "reply_to": "mine", "messages": BODY})
    async with running(database_url, llmock.base_url(), nexus=taken_before) as service:
        await put(db, "ai_requests", message, message)
        if taken_before:
            await answered(db, "mine")
        handle = await service.enqueue("simple", "Something else", request_id=name)
        async with running(database_url, llmock.base_url()):
            with pytest.raises(RequestFailed, match="used before"):
                await handle.result(timeout=20)
        await put(db, "ai_requests", message)
        assert len(await answered(db, "mine")) == 1
    assert [row["status"] for row in await messages(db, "mine")] == ["success"]
