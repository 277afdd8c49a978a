"""A caller, a program of its own: asks what is drawn for it, and writes its ledger before it believes anything.

``python -m chaos.caller --url URL --ledger FILE --name c1 --seed 7 --rate 8``. With ``--after FILE`` it first asks
again what a caller that was killed had left undecided. On SIGTERM it asks nothing more, and leaves when all that it
asked has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from chaos.draw import KINDS, Drawn, drawn
from chaos.ledger_file import LedgerFile, read_ledgers
from chaos.queries import load
from pgnexus.app import App
from pgnexus.errors import (
    DatabaseUnavailable,
    RequestCancelled,
    RequestError,
    RequestTimeout,
    RunCancelled,
    RunError,
)
from pgnexus.messages import new_request_id
from pgnexus.settings import Settings

_PATIENCE = 10.0  # seconds with a connection of one's own, before it is taken for dead
_FLOW = "chaos_brief"
_STATUS = {RequestTimeout: "timeout", RequestCancelled: "cancelled"}


class Caller:
    """Asks, each thing in a task of its own."""

    def __init__(self, app: App, url: str, ledger: LedgerFile) -> None:
        self._app = app
        self._url = url
        self._ledger = ledger
        self._ask: dict[str, Callable[[Drawn, list[UUID]], Awaitable[None]]] = {
            "call": self._call,
            "enqueue": self._enqueue,
            "many": self._many,
            "joined": self._joined,
            "keyed": self._keyed,
            "stream": self._stream,
            "cached": self._enqueue,
            "flight": self._enqueue,
            "flow": self._flow,
        }

    async def ask(self, one: Drawn, ids: list[UUID] | None = None) -> None:
        """Ask it; ``ids`` are those under which it was asked before."""
        ids = ids or [new_request_id() for _ in one.marks]
        self._asks(one, ids)
        try:
            await self._ask[one.kind](one, ids)
        except Exception as error:
            traceback.print_exc()
            self._ledger.note(*({"fault": str(each), "error": repr(error)} for each in ids))

    def _asks(self, one: Drawn, ids: list[UUID]) -> None:
        rest = {"kind": one.kind, "options": one.options, "cancel_after": one.cancel_after}
        rest |= {"chunks": one.chunks, "key": one.marks[0] if one.kind == "keyed" else None}
        pairs = zip(ids, one.marks, strict=True)
        self._ledger.note(*({"asks": str(each), "mark": mark, **rest} for each, mark in pairs))

    def _accepted(self, *ids: UUID) -> None:
        self._ledger.note(*({"accepted": str(each)} for each in ids))

    async def _call(self, one: Drawn, ids: list[UUID]) -> None:
        first, options = _first(one)

        async def call() -> None:
            try:
                result = await self._app.service.call(
                    first, _prompt(one.marks[0]), request_id=ids[0], **options
                )
            except RequestError as error:
                self._accepted(ids[0])
                self._heard(ids[0], error)
            else:
                self._accepted(ids[0])
                self._heard(ids[0], result.text)

        await _insist(call)

    async def _enqueue(self, one: Drawn, ids: list[UUID]) -> None:
        first, options = _first(one)

        async def enqueue() -> None:
            await self._app.service.enqueue(first, _prompt(one.marks[0]), request_id=ids[0], **options)

        await _insist(enqueue)
        self._accepted(ids[0])
        await self._follow(one, ids[0])

    async def _keyed(self, one: Drawn, ids: list[UUID]) -> None:
        """The same key again and again, each time with another id; all must be one request."""
        first, options = _first(one)
        accepted: set[UUID] = set()
        while not accepted or one.repeats:
            try:
                handle = await self._app.service.enqueue(
                    first, _prompt(one.marks[0]), request_id=ids[0], idempotency_key=one.marks[0], **options
                )
            except DatabaseUnavailable:
                await asyncio.sleep(0.1)
            else:
                self._accepted(handle.request_id)
                if accepted:
                    break
                accepted.add(handle.request_id)
                if not one.repeats:
                    break
            ids = [new_request_id()]
            self._asks(one, ids)
        await self._follow(one, accepted.pop())

    async def _many(self, one: Drawn, ids: list[UUID]) -> None:
        first, options = _first(one)
        kind = "model" if "provider" in options else "complexity"
        requests = [
            {kind: first, "messages": _prompt(mark), "request_id": each}
            for each, mark in zip(ids, one.marks, strict=True)
        ]

        async def enqueue() -> None:
            await self._app.service.enqueue_many(requests, **options)

        await _insist(enqueue)
        self._accepted(*ids)
        if one.waits:
            await asyncio.gather(*(self._wait(each) for each in ids))

    async def _joined(self, one: Drawn, ids: list[UUID]) -> None:
        """An order of the caller's own and its request, both or neither; a commit that is cut off is not repeated."""
        first, options = _first(one)
        committing = False
        try:
            async with asyncio.timeout(_PATIENCE):
                connection = await psycopg.AsyncConnection.connect(
                    self._url, prepare_threshold=None, connect_timeout=5
                )
                async with connection:
                    await connection.execute(load("order"), (ids[0], one.marks[0]))
                    await self._app.service.enqueue(
                        first, _prompt(one.marks[0]), connection=connection, request_id=ids[0], **options
                    )
                    committing = not one.rolls_back
                    await (connection.rollback() if one.rolls_back else connection.commit())
        except (psycopg.Error, DatabaseUnavailable, TimeoutError):
            if not committing:
                self._ledger.note({"undone": str(ids[0])})
            return
        if one.rolls_back:
            self._ledger.note({"undone": str(ids[0])})
            return
        self._accepted(ids[0])
        await self._follow(one, ids[0])

    async def _stream(self, one: Drawn, ids: list[UUID]) -> None:
        """Read it to its end, or leave it; a database that is away at the beginning is asked again."""
        first, options = _first(one)

        async def read() -> None:
            heard: list[str] = []
            stream = self._app.service.stream(
                first, _prompt(one.marks[0]), request_id=ids[0], cancel_on_exit=True, **options
            )
            try:
                async with stream:
                    async for chunk in stream:
                        if chunk.discard:
                            heard.clear()
                        heard.append(chunk.text)
                        if one.chunks is not None and chunk.number >= one.chunks:
                            self._accepted(ids[0])
                            self._ledger.note({"left": str(ids[0])})
                            return
            except RequestError as error:
                self._accepted(ids[0])
                self._heard(ids[0], error)
            else:
                self._accepted(ids[0])
                self._ledger.note({"read": str(ids[0]), "text": "".join(heard)})

        await _insist(read)

    async def _flow(self, one: Drawn, ids: list[UUID]) -> None:
        executor = self._app.executor

        async def start() -> None:
            await executor.start(_FLOW, one.marks[0], run_id=ids[0])

        await _insist(start)
        self._accepted(ids[0])
        if one.cancel_after is not None:
            await asyncio.sleep(one.cancel_after)
            self._ledger.note({"left": str(ids[0])})
            await _insist(lambda: executor.cancel(ids[0]))

        async def end() -> None:
            try:
                output = await executor.result(ids[0])
            except RunError as error:
                status = "cancelled" if isinstance(error, RunCancelled) else "failed"
                self._ledger.note({"heard": str(ids[0]), "status": status, "text": ""})
            else:
                said = "\n".join(output["booked"] if isinstance(output, dict) else output)
                self._ledger.note({"heard": str(ids[0]), "status": "success", "text": said})

        await _insist(end)

    async def _follow(self, one: Drawn, request_id: UUID) -> None:
        if one.cancel_after is not None:
            await asyncio.sleep(one.cancel_after)
            self._ledger.note({"left": str(request_id)})
            await _insist(lambda: self._app.service.cancel(request_id))
        if one.waits:
            await self._wait(request_id)

    async def _wait(self, request_id: UUID) -> None:
        async def wait() -> None:
            try:
                result = await self._app.service.wait(request_id)
            except RequestError as error:
                self._heard(request_id, error)
            else:
                self._heard(request_id, result.text)

        await _insist(wait)

    def _heard(self, request_id: UUID, what: str | RequestError) -> None:
        if isinstance(what, str):
            line = {"status": "success", "text": what}
        else:
            line = {"status": _STATUS.get(type(what), "failed"), "text": ""}
        self._ledger.note({"heard": str(request_id), **line})


def _first(one: Drawn) -> tuple[str, dict[str, Any]]:
    """The first argument, and the options without it."""
    options = dict(one.options)
    return options.pop("model", None) or options.pop("complexity"), options


def _prompt(mark: str) -> str:
    return f"[{mark}] a question"


async def _insist(act: Callable[[], Awaitable[Any]]) -> None:
    """Do it until the database takes it."""
    while True:
        try:
            await act()
            return
        except DatabaseUnavailable:
            await asyncio.sleep(0.1)


def undecided(path: Path) -> list[tuple[Drawn, list[UUID]]]:
    """What a caller that was killed did not know of; a transaction of its own is gone, and not repeated."""
    found = [one for one in read_ledgers([path]) if one.undecided and one.kind != "joined"]
    return [
        (
            Drawn(
                "enqueue" if one.kind == "many" else one.kind,
                (one.mark,),
                0.0,
                one.options,
                one.cancel_after,
                one.chunks,
            ),
            [one.request_id],
        )
        for one in found
    ]


async def _run(given: argparse.Namespace) -> None:
    overrides: dict[str, Any] = {"database_url": given.url, "listen_url": given.listen_url}
    flows: dict[str, Any] = {"executor": True} if "flow" in given.kinds else {}
    app = App(Settings.load(**overrides), nexus=False, **flows)
    await _insist(app.start)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    print("ready", os.getpid(), flush=True)
    caller = Caller(app, given.url, LedgerFile(given.ledger))
    async with asyncio.TaskGroup() as asking:
        for one, ids in undecided(given.after) if given.after else []:
            asking.create_task(caller.ask(one, ids))
        began = time.monotonic()
        for one in drawn(given.seed, given.name, given.rate, given.kinds):
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + one.at - time.monotonic())):
                    await told.wait()
            if told.is_set():
                break
            asking.create_task(caller.ask(one))
    await app.stop()
    print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--listen-url")
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rate", type=float, default=8.0, help="things asked a second")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    given = parser.parse_args()
    asyncio.run(_run(given))


if __name__ == "__main__":
    main()
