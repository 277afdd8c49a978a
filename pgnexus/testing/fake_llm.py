"""Beside a test: all providers in one, played by a function of the test."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from pgnexus.errors import ProviderError, ProviderTimeout
from pgnexus.messages import LLMRequest, Usage
from pgnexus.providers.catalogue import catalogue
from pgnexus.providers.provider import Completion, Delta, OnDelta, Provider
from pgnexus.settings import Settings

_WORD = re.compile(r"\S+\s*|\s+")

Answer = Any
Answerer = Callable[[LLMRequest], Answer | Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call that a nexus made: ``request`` as it came, and whom the router chose for it."""

    request: LLMRequest
    provider: str
    model: str

    @property
    def prompt(self) -> str:
        """The last message's text."""
        content = self.request.messages[-1].content
        return content if isinstance(content, str) else to_json(content).decode()


class FakeLLM:
    """Plays every provider of the catalogue for `pgnexus.open` and `pgnexus.executor`: no key, no network.

    ``answer`` is what a model says, or a function of the `LLMRequest`, async or not, that returns it: a text; any other
    JSON value or a model, which is said as JSON; a `Completion` with all that a provider tells; or a
    `ProviderError`, which may be raised, too. Routes and models are those of the settings, as if all keys were
    there; tokens are counted in words. ``calls`` are those that were made, the oldest first. A request that is
    streamed is told its answer word by word.

        fake = FakeLLM(lambda request: "Paris." if "France" in request.messages[-1].content else "No idea.")
        async with pgnexus.open(database_url=url, providers=fake) as llm:
            assert (await llm.call("simple", "The capital of France?")).text == "Paris."

    >>> FakeLLM("Paris.").calls
    []
    """

    def __init__(self, answer: Answer | Answerer = "ok") -> None:
        self.answer = answer
        self.calls: list[Call] = []

    def __call__(self, settings: Settings) -> Mapping[str, Provider]:
        """The providers that these settings know, by name."""
        return {name: _FakeProvider(name, self._complete) for name in catalogue(settings)}

    async def _complete(self, call: Call) -> Completion:
        self.calls.append(call)
        answer = self.answer(call.request) if callable(self.answer) else self.answer
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Completion) else _completion(call, _text(call.request, answer))


@dataclass(frozen=True, slots=True)
class _FakeProvider:
    name: str
    _complete: Callable[[Call], Awaitable[Completion]]

    async def complete(
        self, request: LLMRequest, model: str, *, timeout: float, on_delta: OnDelta | None = None
    ) -> Completion:
        try:
            async with asyncio.timeout(timeout):
                completion = await self._complete(Call(request, self.name, model))
        except ProviderError:
            raise
        except TimeoutError:
            raise ProviderTimeout(f"{self.name}: no answer within {timeout:g} s") from None
        if on_delta is not None:
            for delta in _deltas(completion):
                on_delta(delta)
                await asyncio.sleep(0)  # as a network would, let others have their turn
        return completion

    async def close(self) -> None:
        pass


def _completion(call: Call, text: str) -> Completion:
    asked, said = len(to_json([one.content for one in call.request.messages]).split()), len(text.split())
    return Completion(
        message={"role": "assistant", "content": text},
        text=text,
        model=call.model,
        finish_reason="stop",
        usage=Usage(prompt_tokens=asked, completion_tokens=said, total_tokens=asked + said),
    )


def _deltas(completion: Completion) -> list[Delta]:
    """The answer in pieces: its reasoning and its text by words, each tool call whole."""
    calls = completion.message.get("tool_calls") or ()
    return [
        *(Delta(reasoning=word) for word in _WORD.findall(completion.message.get("reasoning_content") or "")),
        *(Delta(text=word) for word in _WORD.findall(completion.text or "")),
        *(Delta(tool_calls=({"index": index, **call},)) for index, call in enumerate(calls)),
    ]


def _text(request: LLMRequest, answer: Answer) -> str:
    """What a model would say that was asked for JSON: LLM steps ask for an object around other values."""
    if isinstance(answer, str):
        return answer
    schema = ((request.response_format or {}).get("json_schema") or {}).get("schema") or {}
    wraps = list(schema.get("properties") or ()) == ["value"]
    is_wrapped = isinstance(answer, dict) and answer.keys() == {"value"}
    return to_json({"value": answer} if wraps and not is_wrapped else answer).decode()
