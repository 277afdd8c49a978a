"""Who makes the calls: the same prompt to the same model, from the same process, with nothing asked again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Any, Final, Protocol

import aiohttp
from pydantic_core import from_json, to_json

from benchmarks.stage.prompts import prompt
from benchmarks.stage.provider_server import ANSWER
from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.nexus.calls.errand import Errand
from pgnexus.nexus.router import LLMRouter
from pgnexus.providers import Provider, build_providers
from pgnexus.providers.provider import Delta
from pgnexus.settings import Settings

MODEL: Final = "gpt-4o"  # one that has a price, so that it is paid for
_KEY = "sk-benchmark"
_TIMEOUT = 60.0
_PROMPTS = 200  # that are asked in turn


class Contestant(Protocol):
    """One way to a vendor."""

    async def call(self, number: int) -> str:
        """The text of the answer to the prompt of that number."""
        ...

    async def first(self, number: int) -> float:
        """Seconds from asking for a stream until the first words are there; the stream is read to its end."""
        ...


def _messages(number: int) -> list[Any]:
    return [{"role": "user", "content": prompt(number % _PROMPTS)}]


class Bare:
    """aiohttp with the fewest lines: no errors, no types, and no look at what else the answer says."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._url = f"{base_url}/chat/completions"
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_KEY}"}

    def _post(self, number: int, **fields: Any) -> Any:
        body = to_json({"model": MODEL, "messages": _messages(number), **fields})
        return self._session.post(self._url, data=body, headers=self._headers)

    async def call(self, number: int) -> str:
        async with self._post(number) as response:
            answer = from_json(await response.read())
        return str(answer["choices"][0]["message"]["content"])

    async def first(self, number: int) -> float:
        start, seconds = time.perf_counter(), None
        async with self._post(number, stream=True) as response:
            async for line in response.content:
                if seconds is None and line.startswith(b"data: {"):
                    choices = from_json(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        seconds = time.perf_counter() - start
        return _known(seconds)


@asynccontextmanager
async def bare(base_url: str) -> AsyncIterator[Contestant]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Bare(session, base_url)


class Wire:
    """Our wire alone: typed errors, checked answers, tokens."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def call(self, number: int) -> str:
        completion = await self._provider.complete(_request(number), MODEL, timeout=_TIMEOUT)
        return completion.text or ""

    async def first(self, number: int) -> float:
        watch = _Watch()
        await self._provider.complete(_request(number), MODEL, timeout=_TIMEOUT, on_delta=watch)
        return _known(watch.seconds)


@asynccontextmanager
async def wire(base_url: str) -> AsyncIterator[Contestant]:
    async with _providers(base_url) as (_, providers):
        yield Wire(providers["openai"])


class Router:
    """What `pgnexus up` does for a request between the database and the database."""

    def __init__(self, router: LLMRouter, request: Callable[[int], LLMRequest]) -> None:
        self._router = router
        self._request = request

    async def call(self, number: int) -> str:
        outcome = await self._router.route(self._request(number))
        if outcome.completion is None:
            raise RuntimeError(f"no answer: {outcome.error}")
        return outcome.completion.text or ""

    async def first(self, number: int) -> float:
        watch, request = _Watch(), self._request(number)
        await self._router.run(Errand(request, on_delta=watch), self._router.selection(request))
        return _known(watch.seconds)


@asynccontextmanager
async def router(base_url: str) -> AsyncIterator[Contestant]:
    async with _providers(base_url) as (settings, providers):
        yield Router(LLMRouter(settings, providers), _request)


@asynccontextmanager
async def varied(base_url: str) -> AsyncIterator[Contestant]:
    """The router with a prompt, task type, model and agent that it has never seen, each time: caches would show."""
    async with _providers(base_url) as (settings, providers):
        yield Router(LLMRouter(settings, providers), _new_request)


@asynccontextmanager
async def openai_sdk(base_url: str) -> AsyncIterator[Contestant]:
    import openai  # noqa: PLC0415 - none of the others has it in its memory

    async with openai.AsyncOpenAI(api_key=_KEY, base_url=base_url, max_retries=0) as client:
        yield _Sdk(lambda **fields: client.chat.completions.create(model=MODEL, **fields))


@asynccontextmanager
async def any_llm(base_url: str) -> AsyncIterator[Contestant]:
    import any_llm  # noqa: PLC0415 - as above

    llm: Any = any_llm.AnyLLM.create("openai", api_key=_KEY, api_base=base_url, max_retries=0)
    async with llm.client:
        yield _Sdk(lambda **fields: llm.acompletion(model=MODEL, **fields))


class _Sdk:
    """Both SDKs have the same face."""

    def __init__(self, create: Callable[..., Any]) -> None:
        self._create = create

    async def call(self, number: int) -> str:
        answer = await self._create(messages=_messages(number))
        return str(answer.choices[0].message.content)

    async def first(self, number: int) -> float:
        start, seconds = time.perf_counter(), None
        async for chunk in await self._create(messages=_messages(number), stream=True):
            if seconds is None and chunk.choices and chunk.choices[0].delta.content:
                seconds = time.perf_counter() - start
        return _known(seconds)


class _Watch:
    """Hears the deltas, and notes when the first words came."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: float | None = None

    def __call__(self, delta: Delta) -> None:
        if self.seconds is None and delta.text:
            self.seconds = time.perf_counter() - self._start


def _known(seconds: float | None) -> float:
    if seconds is None:
        raise RuntimeError("a stream without words")
    return seconds


@asynccontextmanager
async def _providers(base_url: str) -> AsyncIterator[tuple[Settings, Any]]:
    models = {"base_url": base_url, "models": [MODEL]}
    settings = Settings(default_provider="openai", providers={"openai": models}, local_model=False)
    providers = build_providers(settings, {"OPENAI_API_KEY": _KEY})
    try:
        yield settings, providers
    finally:
        for provider in providers.values():
            await provider.close()


@cache
def _prepared(number: int) -> LLMRequest:
    return LLMRequest(request_id=new_request_id(), messages=_messages(number), model=MODEL)


def _request(number: int) -> LLMRequest:
    """As they come off the queue: what validates them there is no part of the call."""
    return _prepared(number % _PROMPTS)


def _new_request(number: int) -> LLMRequest:
    named: dict[str, Any] = {"model": f"model-{number}"} if number % 2 else {"complexity": "simple"}
    return LLMRequest(
        request_id=new_request_id(),
        messages=[{"role": "user", "content": f"{number} {prompt(number)}"}],
        task_type=f"task-{number}",
        agent_id=f"agent-{number}",
        **named,
    )


CONTESTANTS: Final[dict[str, Callable[[str], AbstractAsyncContextManager[Contestant]]]] = {
    "aiohttp": bare,
    "our wire": wire,
    "our router": router,
    "openai": openai_sdk,
    "any-llm": any_llm,
}


async def calls(contestant: Contestant, numbers: range, at_once: int) -> None:
    """All the calls, so many at once; every answer has to be whole."""
    left = iter(numbers)

    async def caller() -> None:
        for number in left:
            if await contestant.call(number) != ANSWER:
                raise RuntimeError("an answer that is not the server's")

    await asyncio.gather(*(caller() for _ in range(min(at_once, len(numbers)))))
