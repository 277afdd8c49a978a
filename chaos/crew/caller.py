"""A caller of whatever version of pgnexus is installed where it runs; its ledger is a file that outlives everything.

``python -m caller --url URL --ledger FILE --seed WORDS --rate N``: asks N things a second until SIGTERM, then waits for
what it asked. Each line of the ledger is written before anything else happens: what was asked, what is accepted, and
what its results were. It uses nothing but what version 0.1.0 offers, and imports nothing else of this project.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg

import pgnexus

_PAUSE = 0.2  # seconds before something is tried again that the database did not take
_KINDS = {"one": 50, "many": 8, "joined": 16, "taken back": 6, "keyed": 10, "later": 10}
_GONE = (pgnexus.DatabaseUnavailable, psycopg.OperationalError, psycopg.InterfaceError)


class Ledger:
    """One JSON line for each thing that this caller knows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def note(self, what: str, ids: list[str], **more: Any) -> None:
        line = {"what": what, "ids": ids, "at": time.monotonic(), **more}
        self._file.write(json.dumps(line).encode() + b"\n")


class Caller:
    """Asks and waits; whatever the database does meanwhile, nothing is given up."""

    def __init__(self, llm: pgnexus.LLMService, url: str, ledger: Ledger, die: random.Random) -> None:
        self._llm = llm
        self._url = url
        self._ledger = ledger
        self._die = die

    async def ask(self) -> None:
        """Ask one thing, of a kind that is drawn, and see what comes of it."""
        kind = self._die.choices(list(_KINDS), list(_KINDS.values()))[0]
        ids = [_new_id() for _ in range(self._die.randint(2, 20) if kind == "many" else 1)]
        options: dict[str, Any] = {"priority": self._die.choice(("interactive", "standard", "batch"))}
        if kind == "keyed":
            options["idempotency_key"] = f"key {ids[0]}"
        if kind == "later":
            options["delay"] = self._die.uniform(0.5, 3)
        self._ledger.note("asked", ids, kind=kind)
        try:
            if kind == "taken back":
                await self._take_back(ids[0], options)
                return
            times = 2 if kind == "keyed" else 1
            for _ in range(times):
                await self._until_accepted(kind, ids, options)
            await asyncio.gather(*map(self._hear, ids))
        except Exception as error:  # it is the ledger's to say what should not have been
            self._ledger.note("fault", ids, error=f"{type(error).__name__}: {error}", kind=kind)

    async def _until_accepted(self, kind: str, ids: list[str], options: dict[str, Any]) -> None:
        while True:
            began = time.monotonic()
            try:
                if kind == "joined":
                    await self._join(ids[0], options)
                else:
                    requests = [
                        {"complexity": "simple", "messages": _prompt(one), "request_id": one} for one in ids
                    ]
                    await self._llm.enqueue_many(requests, **options)
            except _GONE:
                self._ledger.note("unsure", ids, took=time.monotonic() - began)
                await asyncio.sleep(_PAUSE)
            else:
                self._ledger.note("accepted", ids, took=time.monotonic() - began)
                return

    async def _join(self, request_id: str, options: dict[str, Any]) -> None:
        async with (
            await psycopg.AsyncConnection.connect(self._url, connect_timeout=5) as connection,
            connection.transaction(),
        ):
            prompt = _prompt(request_id)
            await self._llm.enqueue("simple", prompt, request_id=request_id, connection=connection, **options)

    async def _take_back(self, request_id: str, options: dict[str, Any]) -> None:
        try:
            async with await psycopg.AsyncConnection.connect(self._url, connect_timeout=5) as connection:
                await self._llm.enqueue(
                    "simple", _prompt(request_id), request_id=request_id, connection=connection, **options
                )
                await connection.rollback()
        except _GONE:
            self._ledger.note("unsure", [request_id])

    async def _hear(self, request_id: str) -> None:
        while True:
            try:
                result = await self._llm.handle(request_id).result(timeout=60)
            except _GONE:
                await asyncio.sleep(_PAUSE)
            except pgnexus.ResultPending:
                self._ledger.note("waiting", [request_id])
            except pgnexus.RequestError as error:
                self._ledger.note("told", [request_id], status="error", error=type(error).__name__)
                return
            else:
                self._ledger.note("told", [request_id], status=result.status, text=result.response)
                return


def _prompt(request_id: str) -> str:
    """It begins with the mark that the provider's account goes by."""
    return f"[{request_id}] a question"


def _new_id() -> str:
    """A UUIDv7: the results are kept by the month that it tells."""
    number = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | int.from_bytes(os.urandom(9)) & (1 << 76) - 1
    return str(uuid.UUID(int=number & ~(0b11 << 62) | 0b10 << 62))


async def _run(given: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    die = random.Random(given.seed)
    async with pgnexus.open(nexus=False, database_url=given.url) as llm:
        caller = Caller(llm, given.url, Ledger(given.ledger), die)
        print("ready", flush=True)
        asking: set[asyncio.Task[None]] = set()
        while not stopping.is_set():
            task = asyncio.create_task(caller.ask())
            asking.add(task)
            task.add_done_callback(asking.discard)
            await asyncio.sleep(die.expovariate(given.rate))
        await asyncio.gather(*asking)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--rate", type=float, default=20.0)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
