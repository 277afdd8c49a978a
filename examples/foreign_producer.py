"""Ask by plain SQL, from any language, with a reply queue of one's own: python examples/foreign_producer.py

What the producer does is four statements; it knows neither Python nor pgnexus. docs/wire.md is the contract.
"""

import asyncio
import json
import uuid

import psycopg

import pgnexus
from pgnexus.app import App, database_url

CREATE_QUEUE = "select nexus_api.create_queue('my_answers')"
SEND = """
    select pgmq.send('ai_requests', %s::jsonb);
    select pg_notify('pgnexus_requests', '')
"""
READ = "select message from pgmq.read_with_poll('my_answers', vt => 30, qty => 1, max_poll_seconds => 60)"
DELETE = "select pgmq.delete('my_answers', msg_id) from pgmq.q_my_answers where message ->> 'request_id' = %s"


def produce(url: str) -> dict[str, object]:
    """Put a request on its lane and wait for the answer on our own queue."""
    request = {
        "v": 1,
        "request_id": str(uuid.uuid4()),
        "complexity": "simple",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 30,
        "reply_to": "my_answers",
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(CREATE_QUEUE)
        with psycopg.ClientCursor(connection) as cursor:
            cursor.execute(SEND, [json.dumps(request)])
        [answer] = connection.execute(READ).fetchone() or [None]
        if answer is None:
            raise SystemExit("no answer within a minute")
        connection.execute(DELETE, [request["request_id"]])
    return dict(answer)


async def main() -> None:
    async with database_url(pgnexus.Settings.load()) as url:
        nexus = App(
            pgnexus.Settings.load(database_url=url), caller=False, nexus=True
        )  # elsewhere: `pgnexus up`
        await nexus.start()
        try:
            answer = await asyncio.to_thread(produce, url)
        finally:
            await nexus.stop()
    print(
        f"{answer['status']} from {answer.get('provider')}: {answer.get('response') or answer.get('error')}"
    )


asyncio.run(main())
