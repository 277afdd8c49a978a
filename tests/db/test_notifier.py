"""Notifier: the first at once, the rest together, none lost."""

from __future__ import annotations

import asyncio
import gc
from uuid import uuid4

import pytest

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.db.notifier import Notifier


@pytest.fixture
async def heard(database_url: str):
    """Payloads heard on the channel `work`, in a queue, after the one that says it is connected."""
    found: asyncio.Queue[str] = asyncio.Queue()
    listener = Listener(database_url)
    listener.subscribe("work", found.put_nowait)
    await listener.start()
    assert await found.get() == ""
    yield found
    await listener.stop()


async def test_the_first_is_told_to_notify_itself(db: Database) -> None:
    notifier = Notifier(db)
    assert notifier.claim("work") is True
    assert notifier.claim("work") is False
    assert notifier.claim("other") is True
    await notifier.close()


async def test_many_make_one_notify_when_the_window_ends(db: Database, heard: asyncio.Queue[str]) -> None:
    notifier = Notifier(db, window=0.02)
    for number in range(100):
        assert notifier.claim("work") is (number == 0)
        if number:
            notifier.committed("work", [str(number)])
    assert await heard.get() == ",".join(map(str, range(1, 100)))
    await notifier.close()
    await db.query("notify", {"channel": "work", "payload": "last"})
    assert await heard.get() == "last"  # and there was no other before it


async def test_a_commit_after_the_window_is_told_at_once(db: Database, heard: asyncio.Queue[str]) -> None:
    notifier = Notifier(db, window=3600)
    notifier.committed("work")
    assert await heard.get() == ""
    await notifier.close()


async def test_nothing_committed_is_nothing_told(db: Database, heard: asyncio.Queue[str]) -> None:
    notifier = Notifier(db, window=3600)
    notifier.claim("work")
    notifier.claim("work")
    await notifier.close()
    await db.query("notify", {"channel": "work", "payload": "last"})
    assert await heard.get() == "last"


async def test_a_claim_that_came_to_nothing_holds_up_nobody(db: Database, heard: asyncio.Queue[str]) -> None:
    notifier = Notifier(db, window=3600)
    assert notifier.claim("work") is True
    notifier.unclaim("work")
    assert notifier.claim("work") is True
    notifier.committed("work", ["one"])
    notifier.unclaim("work")
    assert await heard.get() == "one"
    await notifier.close()


async def test_close_sends_what_is_due_in_payloads_that_fit(db: Database, heard: asyncio.Queue[str]) -> None:
    notifier = Notifier(db, window=3600)
    notifier.claim("work")
    ids = [str(uuid4()) for _ in range(1000)]
    notifier.committed("work", ids)
    await notifier.close()
    found = [await heard.get() for _ in range(5)]
    assert ",".join(found).split(",") == ids
    assert max(map(len, found)) < 7900


async def test_an_outage_is_no_fault_of_the_notifier(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    db = await Database.open(database_url)
    notifier = Notifier(db, window=3600)
    notifier.claim("work")
    notifier.committed("work")
    await db.close()
    await notifier.close()
    gc.collect()  # an exception that nobody fetched would be told now
    assert not caplog.records
