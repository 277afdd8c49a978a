"""A small campaign of each kind of message, with real processes; `make fuzz` makes a large one."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz import audit, campaign
from tests.fuzz.hostile import Hostile

SEED = int(os.environ.get("PGNEXUS_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
MESSAGES = 2000


@pytest.mark.timeout(300)  # a busy machine is no failure
async def test_every_message_is_accounted_for(database_url, server_dir, db):
    ledger = await campaign.run(database_url, server_dir, seed=SEED, count=MESSAGES)
    verdict = await audit.judge(db, ledger)
    print(audit.table(ledger, verdict))
    assert ledger.sent == MESSAGES
    assert (verdict.lost, verdict.doubled, verdict.faults) == ([], [], [])
    assert min(verdict.requests["archived"], verdict.results["archived"], verdict.requests["answered"]) > 0
    assert verdict.good == {"answered rightly": len(ledger.good)}


def test_a_seed_makes_the_same_messages():
    first, second = (Hostile(7) for _ in range(2))
    assert [first.request() for _ in range(200)] == [second.request() for _ in range(200)]
    assert [first.result() for _ in range(200)] == [second.result() for _ in range(200)]
