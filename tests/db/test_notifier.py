"""Notifier: the first at once, the rest together, none lost."""

from __future__ import annotations

import asyncio

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
    assert [notifier.claim("work") for _ in range(100)].count(True) == 1
    assert await heard.get() == ""
    await notifier.close()
    await db.query("notify", {"channel": "work", "payload": "last"})
    assert await heard.get() == "last"  # and there was no other before it


async def test_a_commit_after_the_window_is_told(db: Database, heard: asyncio.Queue[str]) -> None:
    notifier = Notifier(db, window=0.001)
    notifier.claim("work")
    assert notifier.claim("work") is False
    await heard.get()  # the window's
    await asyncio.sleep(0.005)
    notifier.committed("work")
    assert await heard.get() == ""
    await notifier.close()


async def test_close_sends_what_is_due(db: Database, heard: asyncio.Queue[str]) -> None:
    notifier = Notifier(db, window=3600)
    notifier.claim("work")
    notifier.claim("work")
    await notifier.close()
    assert await heard.get() == ""


async def test_an_outage_is_no_fault_of_the_notifier(database_url: str) -> None:
    db = await Database.open(database_url)
    notifier = Notifier(db, window=3600)
    notifier.claim("work")
    notifier.claim("work")
    await db.close()
    await notifier.close()
