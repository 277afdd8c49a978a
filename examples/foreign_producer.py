"""Ask by plain SQL, from any language, with a reply queue of one's own: python examples/foreign_producer.py

What the producer does is a few statements; it knows neither Python nor pgnexus. docs/wire.md is the contract.
"""

import asyncio
import json
import uuid

import psycopg

import pgnexus
from pgnexus.app import App, database_url

QUEUE = f"answers_{uuid.uuid4().hex[:12]}"  # one for each producer: whoever reads a queue takes what comes
CREATE_QUEUE = "select nexus_api.create_queue(%s)"
SEND = """
    select pgmq.send('ai_requests', %s::jsonb);
    select pg_notify('pgnexus_requests', '')
"""
READ = "select msg_id, message from pgmq.read_with_poll(%s, vt => 30, qty => 1, max_poll_seconds => 60)"
DELETE = "select pgmq.delete(%s, %s::bigint)"
DROP_QUEUE = "select pgmq.drop_queue(%s)"


def produce(url: str) -> dict[str, object]:
    """Put a request on its lane and wait for the answer on our own queue."""
    request = {
        "v": 1,
        "request_id": str(uuid.uuid4()),
        "complexity": "simple",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 30,
        "reply_to": QUEUE,
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(CREATE_QUEUE, [QUEUE])
        with psycopg.ClientCursor(connection) as cursor:
            cursor.execute(SEND, [json.dumps(request)])
        row = connection.execute(READ, [QUEUE]).fetchone()
        if row is None:
            raise SystemExit(f"no answer within a minute; it will come to the queue {QUEUE}")
        msg_id, answer = row
        connection.execute(DELETE, [QUEUE, msg_id])
        connection.execute(DROP_QUEUE, [QUEUE])
    return dict(answer)


async def main() -> None:
    async with database_url(pgnexus.Settings.load()) as url:
        # where the producer lives there is none of this: `pgnexus up` runs elsewhere
        nexus = App(pgnexus.Settings.load(database_url=url), caller=False, nexus=True)
        await nexus.start()
        try:
            answer = await asyncio.to_thread(produce, url)
        finally:
            await nexus.stop()
    print(
        f"{answer['status']} from {answer.get('provider')}: {answer.get('response') or answer.get('error')}"
    )


asyncio.run(main())
