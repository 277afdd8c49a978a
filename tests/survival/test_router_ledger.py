"""The whole router with everything on at once, and everything going wrong at once, judged by ledger.

Three workers, a caller and a vendor that misbehaves; workers are killed and frozen, connections cut, the database
restarted. All is drawn from one seed, which is printed: ``PGNEXUS_LEDGER_SEED`` sets it, ``PGNEXUS_LEDGER_ROUNDS`` how
many rounds there are, each with the next seed, ``PGNEXUS_LEDGER_REQUESTS`` how many requests each has.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from pgnexus.caller.service import LLMService
from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.errors import DatabaseUnavailable, RequestError
from tests.survival import ledger_audit as audit
from tests.survival.ledger_faults import Faults
from tests.survival.ledger_requests import MOST_TOKENS, Asked, ask, drawn
from tests.survival.ledger_vendor import LedgerVendor, ledger_vendor
from tests.survival.processes import Up, opened, restart, up
from tests.system import running, sql, until

pytestmark = pytest.mark.timeout(240)

ROUNDS = int(os.environ.get("PGNEXUS_LEDGER_ROUNDS", "1"))
REQUESTS = int(os.environ.get("PGNEXUS_LEDGER_REQUESTS", "300"))
SECONDS = 9.0 * REQUESTS / 300  # in which they are asked
LEASE = 3.0
WORKERS = ("w1", "w2", "w3")
BUDGETS = {
    ("agent:spender", "usd_per_day"): 1500,
    ("agent:one", "tokens_per_day"): 1200,
    ("key:LEDGER_BETA_KEY", "usd_per_month"): 1_000_000,
}


def settings(vendor: LedgerVendor, worker: str) -> dict[str, str]:
    """The environment of one worker."""
    price = {"input_price": 1_000_000, "output_price": 2_000_000, "cached_price": 0}
    budgets: dict[str, dict[str, int]] = {}
    for (scope, kind), most in BUDGETS.items():
        budgets.setdefault(scope, {})[kind] = most
    groups = {
        "providers": {
            "alpha": {"base_url": vendor.url(worker, "alpha"), "needs_key": False, "models": ["m1", "m3"]},
            "beta": {
                "base_url": vendor.url(worker, "beta"),
                "api_key_env": "LEDGER_BETA_KEY",
                "models": ["m2"],
            },
        },
        "models": dict.fromkeys(("alpha/m1", "alpha/m3", "beta/m2"), price),
        "routes": {
            "simple": ["alpha/m1", "beta/m2"],
            "medium": {"models": ["beta/m2", "alpha/m1"], "over_limit": "wait"},
            "complex": {"models": ["alpha/m3", "beta/m2"], "order": "success_rate"},
            "simple/faq": {"models": ["alpha/m1", "beta/m2"], "share": "all"},
        },
        "limits": {
            "alpha": {"concurrent_calls": 12, "requests_per_minute": 6000},
            "beta/m2": {"concurrent_calls": 8, "tokens_per_minute": 300_000},
            "agent:flood": {"concurrent_calls": 4},
        },
        "budgets": budgets,
    }
    plain = {
        "POLL_INTERVAL": "1",
        "HEARTBEAT_INTERVAL": "0.3",
        "WORKER_LEASE": str(LEASE),
        "CONCURRENCY": "15",
        "PROVIDER_TIMEOUT": "2",
        "RETRY_BASE_DELAY": "0.05",
        "MAX_ATTEMPTS": "9",
        "BREAKER_SECONDS": "0.5",
        "LOCAL_MODEL": "false",
    }
    environment = {f"PGNEXUS_{name.upper()}": json.dumps(rows) for name, rows in groups.items()}
    environment |= {f"PGNEXUS_{name}": value for name, value in plain.items()}
    return environment | {"LEDGER_BETA_KEY": "sk-nothing"}


class Fleet:
    """The workers, and what is done to them."""

    def __init__(self, url: str, vendor: LedgerVendor, stack: AsyncExitStack) -> None:
        self._url = url
        self._vendor = vendor
        self._stack = stack
        self._started = 0
        self.running: dict[str, Up] = {}
        self.all: dict[str, Up] = {}
        self.faults = Faults()

    async def start(self) -> None:
        self._started += 1
        name = f"w{self._started}"
        worker = up(self._url, "--only", "nexus", **settings(self._vendor, name))
        self.running[name] = self.all[name] = await self._stack.enter_async_context(worker)

    async def kill(self, die: random.Random) -> None:
        name = die.choice(sorted(self.running))
        worker = self.running.pop(name)
        self.faults.killed.append((name, time.monotonic()))
        await worker.kill()
        await self.start()

    async def freeze(self, die: random.Random) -> None:
        name = die.choice(sorted(self.running))
        worker = self.running.pop(name)  # nobody kills it meanwhile
        began = time.monotonic()
        worker.freeze()
        await asyncio.sleep(die.uniform(LEASE - 1.5, LEASE + 2.5))
        if die.random() < 0.2:
            self.faults.killed.append((name, began))
            await worker.kill()
            await self.start()
        else:
            worker.thaw()
            self.running[name] = worker
        self.faults.frozen.append((name, began, time.monotonic() + 0.5))

    def note_given_up(self) -> None:
        """Who was late without having been frozen."""
        frozen = {name for name, _, _ in self.faults.frozen}
        self.faults.given_up |= {
            name for name, worker in self.all.items() if name not in frozen and _said(worker, "given up")
        }


def _said(worker: Up, words: str) -> list[str]:
    return [line for line in worker.lines if words in line]


async def cut(url: str, die: random.Random) -> None:
    """End some connections as an operator may."""
    async with opened(url) as db:
        rows = await sql(
            db,
            """select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
               order by pid""",
        )
        for row in die.sample(rows, min(3, len(rows))):
            await sql(db, "select pg_terminate_backend(%s)", row.pid)


async def chaos(fleet: Fleet, server: EmbeddedServer, die: random.Random) -> None:
    """One after the other, in an order that the die decides, as long as requests are asked."""
    deeds: list[str] = []
    for _ in range(max(1, REQUESTS // 300)):
        some = ["kill", "freeze", "cut", "cut", "restart", "kill"]
        die.shuffle(some)
        deeds += some
    await asyncio.sleep(1)
    for deed in deeds:
        print(f"  {deed}")
        if deed == "kill":
            await fleet.kill(die)
        elif deed == "freeze":
            await fleet.freeze(die)
        elif deed == "cut":
            await cut(server.url, die)
        else:
            began, how = time.monotonic(), die.choice((signal.SIGINT, signal.SIGKILL))
            print(f"  ... by {how.name}")
            fleet.faults.crashed |= how == signal.SIGKILL
            await restart(server, how)
            fleet.faults.outages.append((began, time.monotonic()))
        await asyncio.sleep(die.uniform(0.3, 1))


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_everything_at_once(own_server: EmbeddedServer, number: int, tmp_path: Path) -> None:
    seed = int(os.environ.get("PGNEXUS_LEDGER_SEED") or random.randrange(10**6)) + number
    print(f"PGNEXUS_LEDGER_SEED={seed}")
    die = random.Random(seed)
    await schema.migrate(own_server.url)
    asked = drawn(seed, REQUESTS, SECONDS)
    async with AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(ledger_vendor(seed, MOST_TOKENS))
        service = await stack.enter_async_context(running(own_server.url, nexus=False))
        fleet = Fleet(own_server.url, vendor, stack)
        await asyncio.gather(*(fleet.start() for _ in WORKERS))
        asking = [asyncio.create_task(ask(service, one)) for one in asked]
        await chaos(fleet, own_server, die)
        vendor.healthy = True
        async with opened(own_server.url) as db:
            try:
                async with asyncio.timeout(90):
                    await asyncio.gather(*asking)
                    await until(lambda: _over(db), within=90)
                wrong = await _breakers_close(db, service, asked)
                await _gone(db, fleet.faults)
            except TimeoutError:
                pytest.fail(f"PGNEXUS_LEDGER_SEED={seed}\n" + "\n".join(await audit.unended(db)))
            finally:
                for name, worker in fleet.all.items():
                    (tmp_path / f"{name}.log").write_text("".join(worker.lines))
            fleet.note_given_up()
            calls = list(vendor.calls)
            wrong += await _judged(db, asked, calls, fleet)
            await _report(db, asked, calls, fleet.faults)
    assert not wrong, f"PGNEXUS_LEDGER_SEED={seed}\n" + "\n".join(wrong)


async def _over(db: Database) -> bool:
    """Whether every request has ended, on both sides."""
    try:
        [row] = await sql(
            db,
            """select (select count(*) from pgnexus.job_results where finished_at is null)
                    + (select count(*) from pgflow.runs where status = 'started')
                    + (select coalesce(sum(depth), 0) from nexus_api.queue_metrics()) as n""",
        )
    except DatabaseUnavailable:
        return False
    return bool(row.n == 0)


async def _gone(db: Database, faults: Faults) -> None:
    """Give what is to go its time; what is left then is judged."""
    with suppress(TimeoutError):
        await until(lambda: _nothing_left(db, faults), within=15)


async def _nothing_left(db: Database, faults: Faults) -> bool:
    return not await audit.left(db, faults)


async def _breakers_close(db: Database, service: LLMService, asked: list[Asked]) -> list[str]:
    """A vendor that answers again is asked again: no breaker stays open."""

    async def well(provider: str, model: str) -> None:
        one = Asked(f"well-{provider}-{model}", {"provider": provider, "max_tokens": MOST_TOKENS}, 0, "plain")
        asked.append(one)
        one.accepted = True
        await service.call(model, f"[{one.mark}] how are you", request_id=one.request_id, **one.options)

    for provider, model in (("alpha", "m1"), ("alpha", "m3"), ("beta", "m2")):
        try:
            async with asyncio.timeout(40):
                await well(provider, model)
        except (RequestError, TimeoutError) as error:
            return [f"{provider}/{model} is not asked any more: {error!r}"]
    try:
        await until(lambda: _closed(db), within=5)
    except TimeoutError:
        return [f"an open breaker: {row}" for row in await sql(db, "select * from nexus.breakers")]
    return []


async def _closed(db: Database) -> bool:
    return not await sql(
        db, "select 1 from nexus.breakers where reason = 'failures' or open_until > now() + interval '2 s'"
    )


async def _judged(db: Database, asked: list[Asked], calls: Any, fleet: Fleet) -> list[str]:
    wrong = await audit.results(db, asked)
    wrong += await audit.left(db, fleet.faults)
    wrong += await audit.ends(db, asked, calls, fleet.faults)
    wrong += audit.retry_after(calls)
    wrong += await audit.sums(db)
    wrong += await audit.account(db, asked, calls, fleet.faults)
    wrong += await audit.budgets(db, BUDGETS)
    wrong += await audit.texts(db, asked, calls)
    wrong += audit.at_once(asked, calls, fleet.faults)
    wrong += audit.one_flight(asked, calls, fleet.faults)
    for name, worker in fleet.all.items():
        wrong += [f"{name}: {line.strip()}" for line in _said(worker, "own code")]
        wrong += [f"{name}: {line.strip()}" for line in _said(worker, "Traceback")]
    return wrong


async def _report(db: Database, asked: list[Asked], calls: Any, faults: Faults) -> None:
    statuses = await sql(
        db,
        """select status, error ->> 'type' as error, output ? 'cached' as cached, output ? 'shared' as shared,
                  count(*) as n from pgnexus.job_results group by 1, 2, 3, 4 order by 5 desc""",
    )
    outcomes = await sql(db, "select outcome, count(*) as n from nexus.attempts group by 1 order by 2 desc")
    print("results", [tuple(row) for row in statuses])
    print("attempts", {row.outcome: row.n for row in outcomes})
    print("vendor", len(calls), Counter(call.what for call in calls), sum(call.left for call in calls))
    print("streams read", sum(one.read_to_the_end for one in asked), faults)
    for table in ("holdings where leased <> 0", "breakers", "late_calls", "flights"):
        for row in await sql(db, f"select * from nexus.{table}"):
            print(table.split()[0], row)
