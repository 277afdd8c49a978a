"""One request through its candidates when vendors fail: retried, passed on, given up, and always paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from system import fast

from pgnexus.errors import (
    AuthenticationFailed,
    BadAnswer,
    BadRequest,
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaSpent,
    TooManyRequests,
)
from pgnexus.messages import LLMRequest, Usage, new_request_id
from pgnexus.nexus.calls.errand import Errand
from pgnexus.nexus.calls.outcome import RouteOutcome
from pgnexus.nexus.router import LLMRouter
from pgnexus.providers.provider import Completion, Delta
from pgnexus.testing import FakeLLM

FIRST, SECOND, THIRD = "openai/gpt-4o", "xai/grok-4.7", "mistral/mistral-large-4"


class Script:
    """What each model answers, one after the other; the last one for ever."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, settings: Any) -> Any:
        fake = FakeLLM()
        providers = fake(settings)
        self.calls = fake.calls
        fake.answer = lambda _: self._next(fake.calls[-1].provider)
        return providers

    def _next(self, provider: str) -> Any:
        self.asked.append(provider)
        left = self.answers.get(provider, ["ok"])
        return left.pop(0) if len(left) > 1 else left[0]


def request(**fields: Any) -> LLMRequest:
    message = {"role": "user", "content": "Hello"}
    return LLMRequest.model_validate(
        {"request_id": new_request_id(), "messages": [message], "complexity": "medium"} | fields
    )


async def travel(
    script: Script, *, asked: LLMRequest | None = None, errand: dict[str, Any] | None = None, **settings: Any
) -> RouteOutcome:
    route = settings.pop("route", {})
    loaded = fast(
        "postgresql://nowhere",
        router_retries=settings.pop("router_retries", 1),
        routes={"medium": {"models": [FIRST, SECOND, THIRD]} | route},
        **settings,
    )
    router = LLMRouter(loaded, script(loaded))
    one = asked or request()
    return await router.run(Errand(one, **(errand or {})), router.selection(one))


def outcomes(outcome: RouteOutcome) -> list[tuple[str, str]]:
    return [(attempt.provider, attempt.outcome) for attempt in outcome.attempts]


@pytest.mark.parametrize(
    "error", [ProviderUnavailable("500"), ProviderTimeout("slow"), BadAnswer("cut"), TooManyRequests("429")]
)
async def test_what_may_pass_is_asked_again_then_passed_on(error):
    outcome = await travel(Script(openai=[error]))
    assert outcomes(outcome) == [("openai", error.type), ("openai", error.type), ("xai", "success")]
    assert outcome.completion is not None


@pytest.mark.parametrize(
    "error", [AuthenticationFailed("401"), ModelNotFound("404"), QuotaSpent("402"), ProviderError("odd")]
)
async def test_what_asking_again_does_not_cure_is_passed_on_at_once(error):
    outcome = await travel(Script(openai=[error]))
    assert outcomes(outcome) == [("openai", error.type), ("xai", "success")]


@pytest.mark.parametrize("error", [BadRequest("400"), ContentFiltered("no")])
async def test_what_nobody_would_answer_fails_fast(error):
    outcome = await travel(Script(openai=[error]))
    assert outcomes(outcome) == [("openai", error.type)]
    assert (outcome.error, outcome.retryable) == (error, False)


async def test_a_wait_that_is_short_is_kept_here_and_a_long_one_is_not():
    loop = asyncio.get_running_loop()
    start = loop.time()
    short = await travel(Script(openai=[TooManyRequests("429", retry_after=0.3), "ok"]))
    assert outcomes(short) == [("openai", "rate_limited"), ("openai", "success")]
    assert loop.time() - start >= 0.3
    long = await travel(Script(openai=[TooManyRequests("429", retry_after=60), "ok"]))
    assert outcomes(long) == [("openai", "rate_limited"), ("xai", "success")]


async def test_the_wait_of_every_retry_is_the_one_that_its_answer_asks_for():
    answers = [
        TooManyRequests("429", retry_after=0.05),
        TooManyRequests("429", retry_after=0.4),
        TooManyRequests("429", retry_after=0.01),
        "ok",
    ]
    outcome = await travel(Script(openai=answers), router_retries=3)
    starts = [attempt.started_at for attempt in outcome.attempts]
    waits = [(later - earlier).total_seconds() for earlier, later in pairwise(starts)]
    assert [wait >= least for wait, least in zip(waits, (0.05, 0.4, 0.01), strict=True)] == [True] * 3


async def test_when_nobody_can_the_shortest_wait_counts_and_the_curable_error():
    script = Script(
        openai=[AuthenticationFailed("401")],
        xai=[TooManyRequests("429", retry_after=90)],
        mistral=[ProviderUnavailable("503", retry_after=40)],
    )
    outcome = await travel(script)
    assert (outcome.error and outcome.error.type, outcome.retry_after) == ("rate_limited", 40)
    assert [provider for provider, _ in outcomes(outcome)] == ["openai", "xai", "mistral"]


CARDS = {
    FIRST: {"context_length": 8000},
    SECOND: {"context_length": 8000},
    THIRD: {"context_length": 128_000},
}


class TestTooLong:
    async def test_it_goes_to_a_longer_context(self):
        outcome = await travel(Script(openai=[ContextTooLong("long")]), models=CARDS)
        assert outcomes(outcome) == [("openai", "context_too_long"), ("mistral", "success")]

    async def test_one_of_unknown_context_is_tried(self):
        cards = {FIRST: {"context_length": 8000}, THIRD: {"context_length": 4000}}
        script = Script(openai=[ContextTooLong("long")], ours=["ok"])
        outcome = await travel(
            script,
            models=cards,
            providers={"ours": {"base_url": "http://nowhere/v1", "models": ["m"]}},
            route={"models": [FIRST, THIRD, "ours/m"]},
        )
        assert outcomes(outcome) == [("openai", "context_too_long"), ("ours", "success")]

    async def test_a_route_may_forbid_it(self):
        route = {"longer_context": False}
        outcome = await travel(Script(openai=[ContextTooLong("long")]), models=CARDS, route=route)
        assert outcomes(outcome) == [("openai", "context_too_long")]
        assert (outcome.error and outcome.error.type, outcome.retryable) == ("context_too_long", False)


class TestPaidFor:
    async def test_a_call_that_is_cancelled_is_among_the_calls_at_what_was_set_aside(self):
        begun = asyncio.Event()

        async def never(_: LLMRequest) -> str:
            begun.set()
            await asyncio.Event().wait()
            return "never"

        loaded = fast("postgresql://nowhere", routes={"medium": [FIRST]})
        router = LLMRouter(loaded, FakeLLM(never)(loaded))
        errand = Errand(request(max_tokens=100))
        task = asyncio.create_task(router.run(errand, router.selection(errand.request)))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        [attempt] = errand.calls
        assert (attempt.outcome, attempt.estimated, attempt.usage.completion_tokens) == (
            "cancelled",
            True,
            100,
        )
        assert attempt.cost is not None
        assert attempt.cost > 0

    async def test_a_worker_that_is_taken_for_dead_pays_for_nothing_more(self):
        loaded = fast("postgresql://nowhere", routes={"medium": [FIRST]})
        alive = [True, False]
        router = LLMRouter(loaded, Script(openai=["ok", "ok"])(loaded), alive=lambda: alive.pop(0))
        assert (await router.route(request())).error is None
        errand = Errand(request())
        with pytest.raises(asyncio.CancelledError):
            await router.run(errand, router.selection(errand.request))
        assert errand.calls == []

    async def test_an_answer_of_no_use_costs_what_the_vendor_counted(self):
        told = Usage(prompt_tokens=1000, completion_tokens=1000, total_tokens=2000)
        outcome = await travel(Script(openai=[BadAnswer("cut", usage=told), "ok"]))
        assert [attempt.outcome for attempt in outcome.attempts] == ["bad_answer", "success"]
        broken = outcome.attempts[0]
        assert (broken.usage, broken.estimated, broken.cost) == (told, False, Decimal("0.0125"))
        assert outcome.usage.total_tokens > 2000
        assert (outcome.cost or 0) > Decimal("0.0125")

    async def test_one_that_told_nothing_is_estimated_and_one_that_was_refused_is_free(self):
        outcome = await travel(
            Script(openai=[ProviderTimeout("slow"), ProviderUnavailable("503", status=503)])
        )
        timeout, refused, answered = outcome.attempts
        assert (timeout.estimated, timeout.cost is not None, timeout.usage.total_tokens > 0) == (True,) * 3
        assert (refused.estimated, refused.usage.total_tokens) == (False, 0)
        assert (answered.estimated, outcome.estimated) == (False, True)


async def test_a_stream_that_broke_is_discarded_before_the_next_one_speaks():
    heard: list[str] = []

    def tell(delta: Delta) -> None:
        heard.append(delta.text)

    loaded = fast("postgresql://nowhere", routes={"medium": [FIRST, SECOND]})
    fake = FakeLLM("one two three")
    providers = dict(fake(loaded))

    class Breaks:
        name = "openai"

        async def complete(
            self, request: LLMRequest, model: str, *, timeout: float, on_delta: Callable[[Delta], None]
        ) -> Any:
            on_delta(Delta(text="one tw"))
            raise BadAnswer("openai: broke off")

        async def close(self) -> None: ...

    providers["openai"] = Breaks()
    router = LLMRouter(loaded, providers)
    asked = request(stream=True)
    errand = Errand(asked, on_delta=tell, on_discard=lambda: heard.append("DISCARD"))
    outcome = await router.run(errand, router.selection(asked))
    assert outcomes(outcome) == [("openai", "bad_answer"), ("xai", "success")]
    assert heard[:2] == ["one tw", "DISCARD"]
    assert "".join(heard[2:]) == "one two three"


async def test_a_price_of_the_settings_holds_whatever_name_the_vendor_answers_with():
    told = Usage(prompt_tokens=1_000_000, total_tokens=1_000_000)
    message = {"role": "assistant", "content": "Hi"}
    dated = Completion(message, "Hi", "gpt-4o-2024-08-06", "stop", told)
    prices = {FIRST: {"input_price": 7, "output_price": 1}}
    outcome = await travel(Script(openai=[dated]), models=prices)
    assert outcome.cost == 7
    assert (await travel(Script(openai=[dated]))).cost == Decimal("2.5")
