"""Requests of every kind, drawn by a seeded die, and those who ask them: some leave, some cancel."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pgnexus.caller.service import LLMService
from pgnexus.errors import DatabaseUnavailable, RequestError
from pgnexus.messages import new_request_id

MOST_TOKENS = 40
_MODELS = (("alpha", "m1"), ("alpha", "m3"), ("beta", "m2"))


@dataclass
class Asked:
    """One request, and what its caller has heard of it."""

    mark: str
    options: dict[str, Any]
    at: float  # seconds after the beginning
    kind: str
    cancel_after: float | None = None
    chunks: int | None = None  # of a stream, after which its reader leaves
    request_id: UUID = field(default_factory=new_request_id)
    accepted: bool = False
    heard: list[str] = field(default_factory=list)
    read_to_the_end: bool = False

    @property
    def agent(self) -> str | None:
        return self.options.get("agent_id")


def drawn(seed: int, requests: int, seconds: float) -> list[Asked]:
    """So many requests within so many seconds."""
    die = random.Random(seed)
    return [_one(die, number, die.uniform(0, seconds)) for number in range(requests)]


def _one(die: random.Random, number: int, at: float) -> Asked:
    kind = die.choices(("plain", "stream", "cached", "flight"), (55, 18, 12, 15))[0]
    options: dict[str, Any] = {
        "complexity": die.choice(("simple", "medium", "complex")),
        "max_tokens": MOST_TOKENS,
        "priority": die.choice(("interactive", "standard", "batch")),
        "timeout": None,
    }
    if kind in ("cached", "flight"):
        mark = f"{kind}{die.randrange(4)}"
        options["complexity"] = "simple"  # one key for all of a mark
        options |= {"task_type": "faq"} if die.random() < 0.2 else {}
        options |= {"cache": 30.0} if kind == "cached" else {"single_flight": True}
        if "task_type" in options:
            mark = f"faq-{mark}"  # its route shares with everybody
            options["agent_id"] = die.choice(("one", "other"))
        return Asked(mark, options, at, kind, cancel_after=die.uniform(0, 2) if die.random() < 0.1 else None)
    agent = die.choices((None, "flood", "spender", "one", "other"), (25, 35, 20, 10, 10))[0]
    options |= {"agent_id": agent} if agent else {}
    if die.random() < 0.2:
        provider, model = die.choice(_MODELS)
        options |= {"provider": provider, "model": model}
    if die.random() < 0.12:
        options["timeout"] = die.uniform(0.5, 6)
    if die.random() < 0.1:
        options["delay"] = die.uniform(0.2, 4)
    asked = Asked(f"{kind}{number}", options, at, kind)
    if die.random() < 0.1:
        asked.cancel_after = die.uniform(0, 5)
    if kind == "stream":
        asked.chunks = die.randint(1, 6) if die.random() < 0.25 else None
    return asked


async def ask(service: LLMService, one: Asked) -> None:
    """Have it accepted, whatever it takes; then do as its caller does."""
    await asyncio.sleep(one.at)
    if one.kind == "stream":
        await _read(service, one)
        return
    options = dict(one.options)
    first = options.pop("model", None) or options["complexity"]
    while not one.accepted:
        try:
            await service.enqueue(first, f"[{one.mark}] a question", request_id=one.request_id, **options)
            one.accepted = True
        except DatabaseUnavailable:
            await asyncio.sleep(0.1)
    if one.cancel_after is not None:
        await asyncio.sleep(one.cancel_after)
        await cancel(service, one.request_id)


async def cancel(service: LLMService, request_id: UUID) -> None:
    while True:
        try:
            await service.cancel(request_id)
            return
        except DatabaseUnavailable:
            await asyncio.sleep(0.1)


async def _read(service: LLMService, one: Asked) -> None:
    """Read the stream to its end, or leave it; a database that is away at the beginning is asked again."""
    options = dict(one.options)
    first = options.pop("model", None) or options["complexity"]
    while True:
        stream = service.stream(
            first, f"[{one.mark}] a question", request_id=one.request_id, cancel_on_exit=True, **options
        )
        try:
            async with stream:
                one.accepted = True
                async for chunk in stream:
                    if chunk.discard:
                        one.heard.clear()
                    one.heard.append(chunk.text)
                    if one.chunks is not None and chunk.number >= one.chunks:
                        return
            one.read_to_the_end = True
            return
        except DatabaseUnavailable:
            one.heard.clear()
            await asyncio.sleep(0.1)
        except RequestError:
            one.heard.clear()  # it ended without an answer
            return
