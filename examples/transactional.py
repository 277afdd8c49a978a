"""Store a ticket and the request about it in one transaction: python examples/transactional.py

Both are there, or neither. The application's table is in the same database as pgnexus.
"""

import asyncio

import psycopg

import pgnexus
from pgnexus.app import database_url

TABLE = """
    create table if not exists tickets (
        id serial primary key, body text not null, request_id uuid not null, summary text
    )
"""


async def open_ticket(
    llm: pgnexus.LLMService, connection: psycopg.AsyncConnection, body: str
) -> pgnexus.RequestHandle:
    """Commit and both are accepted, raise and neither ever was."""
    async with connection.transaction():
        handle = await llm.enqueue(
            "simple", f"Sum this up in a few words: {body}", max_tokens=30, connection=connection
        )
        await connection.execute(
            "insert into tickets (body, request_id) values (%s, %s)", [body, handle.request_id]
        )
        if not body.strip():
            raise ValueError("a ticket needs a text")
    return handle


async def main() -> None:
    # With PGNEXUS_DATABASE_URL set this is that URL; without it, that of the embedded server.
    async with (
        database_url(pgnexus.Settings.load()) as url,
        pgnexus.open(database_url=url) as llm,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
    ):
        await connection.execute(TABLE)
        handle = await open_ticket(llm, connection, "The printer on the third floor eats paper.")
        try:
            await open_ticket(llm, connection, " ")
        except ValueError as error:
            print(f"rolled back: {error}")
        result = await handle.result(timeout=300)
        await connection.execute(
            "update tickets set summary = %s where request_id = %s", [result.text, result.request_id]
        )
        print(f"summary: {result.text.strip()}")
        stored = await llm.search(limit=10)
        print(
            f"requests stored for the empty ticket: {sum('few words:  ' in str(row.input) for row in stored)}"
        )


asyncio.run(main())
