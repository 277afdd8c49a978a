"""App under the roles of the two sides: what it may not do it says at the start, or leaves to others."""

from __future__ import annotations

import pytest

from pgnexus.app import App
from pgnexus.db.database import Database
from pgnexus.errors import UnsuitableDatabase
from tests.system import fast, running


async def test_a_callers_role_leaves_the_nexus_to_others(caller_url: str) -> None:
    async with running(caller_url, nexus=None) as service:
        handle = await service.enqueue("simple", "Hello")
        assert await handle.status() == "enqueued"
        assert await service.live_instances() == 0


@pytest.mark.parametrize("nexus", [True, None])
async def test_the_nexus_role_cannot_be_the_caller_side(nexus_url: str, nexus: bool | None) -> None:
    with pytest.raises(UnsuitableDatabase, match="pgnexus_nexus may not be the caller side"):
        await App(fast(nexus_url), nexus=nexus).start()


async def test_the_callers_role_cannot_be_the_nexus_side(caller_url: str, db: Database) -> None:
    with pytest.raises(UnsuitableDatabase, match="grant pgnexus_nexus to it"):
        await App(fast(caller_url), nexus=True).start()
    [row] = await db.query("live_instances", {"lease": 60})
    assert row.instances == 0
