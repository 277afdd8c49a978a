"""One campaign: real processes under the two roles, hostile messages on their queues, one good request in ten."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import psycopg
from aiohttp import web
from psycopg.types.json import Jsonb
from pydantic_core import to_json

from pgnexus.db.database import Database
from pgnexus.messages import new_request_id
from tests.fuzz.hostile import LANES, MINE, THEIRS, Hostile, Sent
from tests.provider_server import answer, served
from tests.system import sql

BATCH = 500
QUEUES = (*LANES, "ai_results", "llm_request_workflow")
_MOST_WAITING = 4000  # messages on the queues before more are sent
_STUCK = 30.0  # seconds without any progress after which a campaign gives up waiting
_LOOK = 0.2
_READY = "ready"
_ENVIRON = {
    "PGNEXUS_POLL_INTERVAL": "1",
    "PGNEXUS_DEFAULT_PROVIDER": "openai",
    "PGNEXUS_PROVIDERS__OPENAI__NEEDS_KEY": "false",
    "PGNEXUS_LOCAL_MODEL": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Ledger:
    """What was sent, and what was seen of the processes; `tests.fuzz.audit` holds it against the database."""

    seed: int
    requests: dict[tuple[str, int], Sent] = field(default_factory=dict)
    results: dict[int, Sent] = field(default_factory=dict)
    good: dict[UUID, str] = field(default_factory=dict)
    accepted: dict[UUID, Sent] = field(default_factory=dict)  # hostile ones that pgnexus.enqueue took
    taken: int = 0  # with those that it had taken before
    refused: Counter[str] = field(default_factory=Counter)  # those that it did not, by SQLSTATE
    no_jsonb: int = 0
    blocked: float = 0.0
    seconds: float = 0.0
    memory: dict[str, list[int]] = field(default_factory=dict)  # MB after each fifth, and at the end
    log: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self.requests) + len(self.results) + self.taken + self.refused.total() + self.no_jsonb


class Process:
    """One `pgnexus up`, whose log goes to a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self.memory: list[int] = []

    def rss(self) -> int:
        """Its memory in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    def lines(self) -> list[str]:
        """Its log, line by line as whoever reads the file sees it; what `up` itself says is left out."""
        text = self._log.read_bytes().decode(errors="replace")
        _, _, logged = text.partition("Ctrl-C stops\n")
        return [line for line in logged.split("\n") if line and not line.startswith("stop")]

    async def stop(self) -> int:
        self._process.terminate()
        return await self._process.wait()


@asynccontextmanager
async def up(name: str, url: str, directory: Path, **environ: str) -> AsyncIterator[Process]:
    """`pgnexus up --only NAME`, ready; it must still live when the block ends, and leave in good order."""
    log = directory / f"{name}.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pgnexus", "--database-url", url, "up", "--only", name),
            env=os.environ | _ENVIRON | environ,
            stdout=file,
            stderr=file,
        )
    running = Process(name, process, log)
    try:
        async with asyncio.timeout(60):
            while _READY not in log.read_text(errors="replace"):
                assert process.returncode is None, log.read_text(errors="replace")
                await asyncio.sleep(0.05)
        yield running
        assert process.returncode is None, f"{name} ended by itself"
        assert await running.stop() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(
    url: str, directory: Path, *, seed: int, count: int, say: Callable[[str], None] = lambda _: None
) -> Ledger:
    """Send ``count`` hostile messages, and good ones among them; returns when everything is at rest."""
    ledger = Ledger(seed)
    db = await Database.open(url)
    caller = await Database.open(f"{url}&options=-crole%3Dpgnexus_caller")
    nexus = await Database.open(f"{url}&options=-crole%3Dpgnexus_nexus")
    await sql(caller, "select nexus_api.create_queue(%s)", MINE)
    await sql(db, "select pgmq.create(%s)", THEIRS)
    try:
        async with (
            served(_echo) as vendor,
            up(
                "nexus",
                f"{url}&options=-crole%3Dpgnexus_nexus",
                directory,
                PGNEXUS_PROVIDERS__OPENAI__BASE_URL=vendor,
            ) as first,
            up("poller", f"{url}&options=-crole%3Dpgnexus_caller", directory) as second,
        ):
            watch = Watch(db, ledger)
            await _send_all(ledger, caller, nexus, watch, (first, second), count, say)
            await watch.rest()
            for process in (first, second):
                ledger.memory[process.name] = [*process.memory, process.rss()]
            ledger.blocked, ledger.seconds = watch.blocked, watch.seconds()
        ledger.log = [line for process in (first, second) for line in process.lines()]
    finally:
        for one in (db, caller, nexus):
            await one.close()
    return ledger


class Watch:
    """Looks at the queues: how much waits, and for how long nothing of it moved."""

    def __init__(self, db: Database, ledger: Ledger) -> None:
        self._db, self._ledger = db, ledger
        self._began = self._moved = time.monotonic()
        self._state: tuple[int, ...] = ()
        self.blocked = 0.0

    def seconds(self) -> float:
        return time.monotonic() - self._began

    async def waiting(self) -> tuple[int, int]:
        """Messages on the queues, and requests that have not ended."""
        depths = ", ".join(f"(select count(*) from pgmq.q_{queue})" for queue in QUEUES)
        oldest = ", ".join(f"(select coalesce(min(msg_id), 0) from pgmq.q_{queue})" for queue in QUEUES)
        [row] = await sql(
            self._db,
            f"""select array[{depths}] as depths, array[{oldest}] as oldest,
                       (select count(*) from pgflow.runs where status = 'started') as runs,
                       (select count(*) from pgnexus.job_results
                        where finished_at is null and input ->> 'reply_to' is distinct from '{MINE}') as open""",
        )
        state = (*row.depths, *row.oldest, row.runs, row.open)
        now = time.monotonic()
        waits = sum(row.depths) + row.runs + row.open
        if state != self._state or not waits:
            self._moved = now
        self._state = state
        self.blocked = max(self.blocked, now - self._moved)
        return sum(row.depths), row.runs + row.open

    async def below(self, most: int) -> None:
        while (await self.waiting())[0] > most and self.blocked < _STUCK:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)

    async def rest(self) -> None:
        while any(await self.waiting()) and self.blocked < _STUCK:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)


async def _send_all(
    ledger: Ledger,
    caller: Database,
    nexus: Database,
    watch: Watch,
    processes: Iterable[Process],
    count: int,
    say: Callable[[str], None],
) -> None:
    hostile = Hostile(ledger.seed)
    sent = 0
    while sent < count:
        batch = min(BATCH, count - sent)
        alone = batch // 20
        results = batch // 3
        await _put(ledger, caller, [hostile.request() for _ in range(batch - alone - results)])
        await _put(ledger, nexus, [hostile.result() for _ in range(results)])
        for _ in range(alone):
            await _enqueue(ledger, caller, hostile.request())
        await _ask(ledger, caller, max(1, batch // 9))
        sent += batch
        await watch.below(_MOST_WAITING)
        for process in processes:
            if sent * 5 >= count * (len(process.memory) + 1):
                process.memory.append(process.rss())
        if sent % 10_000 < BATCH:
            say(f"{sent:,} of {count:,} sent, {watch.seconds():.0f} s")


async def _put(ledger: Ledger, db: Database, batch: list[Sent]) -> None:
    """Put messages as they are; those that are no jsonb cannot come onto a queue at all."""
    for queue in dict.fromkeys(one.queue for one in batch):
        chosen = [one for one in batch if one.queue == queue]
        try:
            ids = await _send(db, queue, chosen)
        except psycopg.DataError:
            for one in chosen:
                try:
                    ids = await _send(db, queue, [one])
                except psycopg.DataError:
                    ledger.no_jsonb += 1
                else:
                    _note(ledger, queue, ids, [one])
        else:
            _note(ledger, queue, ids, chosen)
    await sql(db, "select pg_notify(c, '') from unnest('{pgnexus_requests,pgnexus_results}'::text[]) as c")


async def _send(db: Database, queue: str, batch: list[Sent]) -> list[int]:
    texts = [one.text for one in batch]
    rows = await sql(db, "select pgmq.send_batch(%s, %s::text[]::jsonb[]) as id", queue, texts)
    return [row.id for row in rows]


def _note(ledger: Ledger, queue: str, ids: list[int], batch: list[Sent]) -> None:
    for msg_id, one in zip(ids, batch, strict=True):
        if queue == "ai_results":
            ledger.results[msg_id] = one
        else:
            ledger.requests[queue, msg_id] = one


async def _enqueue(ledger: Ledger, caller: Database, one: Sent) -> None:
    """The front door: it takes a request, or says why not."""
    try:
        [row] = await sql(caller, "select * from pgnexus.enqueue(array[%s::text::jsonb])", one.text)
    except psycopg.Error as error:
        ledger.refused[error.sqlstate or "none"] += 1
    else:
        ledger.taken += 1
        ledger.accepted.setdefault(row.request_id, one)


async def _ask(ledger: Ledger, caller: Database, count: int) -> None:
    """Requests that nothing is wrong with."""
    requests = []
    for _ in range(count):
        request_id = new_request_id()
        ledger.good[request_id] = words = f"good {request_id}"
        message = {"role": "user", "content": words}
        requests.append(
            Jsonb({"request_id": str(request_id), "messages": [message], "agent_id": "good", "timeout": 600})
        )
    await sql(caller, "select * from pgnexus.enqueue(%s::jsonb[])", requests)


async def _echo(request: web.Request) -> web.Response:
    """A vendor that repeats what it is told."""
    body = await request.json()
    said = body["messages"][-1].get("content") if body.get("messages") else None
    return web.Response(body=to_json(answer(f"echo: {said}"[:200])), content_type="application/json")
