"""PgmqClient against the real queues."""

from __future__ import annotations

import asyncio

import pytest

from pgnexus.db.database import Database
from pgnexus.errors import InvalidRequest
from pgnexus.pgmq import PgmqClient


@pytest.fixture
async def pgmq(db: Database) -> PgmqClient:
    client = PgmqClient(db)
    await client.ensure_queue("work")
    return client


async def test_a_queue_is_created_once_also_under_a_race(db: Database) -> None:
    client = PgmqClient(db)
    await asyncio.gather(*(client.ensure_queue("raced") for _ in range(8)))
    assert await client.ensure_queue("raced") is False
    assert (await client.metrics("raced")).queue_length == 0


async def test_a_message_travels_whole(pgmq: PgmqClient) -> None:
    sent = await pgmq.send_message("work", {"text": "ä\n%s", "n": [1, None]}, headers={"h": 1})
    [message] = await pgmq.read_messages("work", 10)
    assert (message.msg_id, message.read_ct) == (sent, 1)
    assert message.message == {"text": "ä\n%s", "n": [1, None]}
    assert message.headers == {"h": 1}


async def test_a_read_message_is_hidden_until_its_time_is_set(pgmq: PgmqClient) -> None:
    ids = await pgmq.send_messages("work", [{"n": n} for n in range(3)])
    assert [m.msg_id for m in await pgmq.read_messages("work", 10, vt=60)] == ids
    assert await pgmq.read_messages("work", 10) == []
    assert await pgmq.set_vt("work", ids[:2], 0) == ids[:2]
    assert [m.read_ct for m in await pgmq.read_messages("work", 10)] == [2, 2]


async def test_a_delayed_message_waits(pgmq: PgmqClient) -> None:
    await pgmq.send_message("work", "{}", delay=600)
    assert await pgmq.read_messages("work") == []
    metrics = await pgmq.metrics("work")
    assert (metrics.queue_length, metrics.visible) == (1, 0)


async def test_ack_deletes_and_archive_keeps(pgmq: PgmqClient, db: Database) -> None:
    first, second, third = await pgmq.send_messages("work", [{}, {}, {}])
    assert await pgmq.ack_message("work", first) is True
    assert await pgmq.ack_message("work", first) is False
    assert await pgmq.ack_messages("work", [first, second]) == [second]
    assert await pgmq.archive("work", [second, third]) == [third]
    async with db.connection() as connection:
        rows = await (await connection.execute("SELECT msg_id FROM pgmq.a_work")).fetchall()
    assert rows == [(third,)]
    assert (await pgmq.metrics("work")).queue_length == 0


async def test_nothing_to_send_is_nothing_sent(pgmq: PgmqClient) -> None:
    assert await pgmq.send_messages("work", []) == []


@pytest.mark.parametrize("name", ["", "Work", "a-b", "a;b", "x" * 48, "ä"])
async def test_a_bad_queue_name_is_refused(pgmq: PgmqClient, name: str) -> None:
    for attempt in (pgmq.ensure_queue(name), pgmq.send_message(name, {}), pgmq.read_messages(name)):
        with pytest.raises(InvalidRequest, match="queue name"):
            await attempt


async def test_a_queue_that_is_not_there_is_named(pgmq: PgmqClient) -> None:
    with pytest.raises(InvalidRequest, match="'missing'"):
        await pgmq.read_messages("missing")


async def test_a_message_too_deep_to_parse_is_read_as_text(pgmq: PgmqClient) -> None:
    await pgmq.send_messages("work", ["[" * 4000 + "]" * 4000, '{"fine": true}'])
    deep, fine = await pgmq.read_messages("work", 2)
    assert isinstance(deep.message, str)
    assert fine.message == {"fine": True}
