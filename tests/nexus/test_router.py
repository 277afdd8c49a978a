"""From a request to candidates to one answer, over real vendors' wires as llmock plays them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import pytest

from pgnexus.errors import BadRequest, InternalFailure, InvalidSettings, NoCandidate, TooManyRequests
from pgnexus.messages import LLMRequest, Usage, new_request_id
from pgnexus.nexus.router import LLMRouter, RouteOutcome
from pgnexus.nexus.selection import DEFAULT_ROUTES, Candidate
from pgnexus.providers import Completion, build_providers
from pgnexus.providers.catalogue import catalogue
from pgnexus.providers.prices import cost
from pgnexus.settings import Settings

ALL_KEYS = {name: "key" for vendor in catalogue(Settings()).values() for name in vendor.api_key_env}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
PLAYED = ("openai", "groq", "mistral", "xai", "together")  # by llmock, in OpenAI's form


def router(environ: dict[str, str] | None = None, **settings: Any) -> LLMRouter:
    loaded = Settings(**settings)
    return LLMRouter(loaded, build_providers(loaded, ALL_KEYS if environ is None else environ))


def ask(text: Any = "Hello", **fields: Any) -> LLMRequest:
    return LLMRequest(request_id=new_request_id(), messages=[{"role": "user", "content": text}], **fields)


def names(candidates: list[Candidate]) -> list[str]:
    return [str(candidate) for candidate in candidates]


class TestChoosing:
    @pytest.mark.parametrize(
        ("complexity", "task_type", "first"),
        [
            ("simple", None, "gemini/gemini-3.8-flash"),
            ("simple", "classifier", "gemini/gemini-3.8-flash"),
            ("medium", None, "anthropic/claude-sonnet-5-5"),
            ("medium", "planning", "anthropic/claude-sonnet-5-5"),
            ("complex", None, "openai/gpt-4o"),
            ("complex", "qa", "openai/gpt-4o"),
            ("medium", "coder", "openai/gpt-5.3-codex"),
            ("complex", "code_generation", "openai/gpt-5.3-codex"),
            ("complex", "refactoring", "openai/gpt-5.3-codex"),
            ("complex", "architect", "anthropic/claude-opus-5-5"),
            ("medium", "poetry", "anthropic/claude-sonnet-5-5"),
        ],
    )
    def test_the_default_table(self, complexity, task_type, first):
        candidates = names(router().select_model(complexity, task_type))
        assert candidates[0] == first
        assert len({ref.split("/")[0] for ref in candidates}) == len(candidates) > 3  # each of another vendor

    def test_every_default_route_names_a_vendor_and_a_model_with_a_price(self):
        vendors = catalogue(Settings())
        used = Usage(prompt_tokens=10, completion_tokens=1, total_tokens=11)
        for row in DEFAULT_ROUTES.values():
            for ref in row.models:
                vendor, model = ref.split("/", 1)
                assert cost(vendors[vendor], model, used) is not None, ref

    def test_vendors_without_a_key_are_passed_over(self):
        only = router({"OPENAI_API_KEY": "k", "XAI_API_KEY": "k"})
        assert names(only.select_model("medium")) == ["openai/gpt-4o", "xai/grok-4.7"]

    def test_a_key_for_a_vendor_on_no_route_is_used_before_the_local_model(self):
        only = router({"OPENROUTER_API_KEY": "k"})
        assert names(only.select_model("simple")) == ["openrouter/anthropic/claude-sonnet-5.5"]
        ours = router({}, providers={"ours": {"base_url": "http://host/v1", "models": ["m"]}})
        assert names(ours.select_model("simple")) == ["ours/m"]

    def test_without_any_key_everything_goes_to_the_local_model(self):
        for complexity, task_type in (("simple", None), ("complex", "architect"), ("medium", "coder")):
            assert names(router({}).select_model(complexity, task_type)) == ["local/smollm2-135m-instruct"]
        assert router({}, local_model=False).select_model("simple") == []

    def test_settings_lie_over_the_table(self):
        routes = {"simple": ["groq/openai/gpt-oss-20b"], "complex/qa": ["xai/grok-4.7", "openai/gpt-4o"]}
        changed = router(routes=routes)
        assert names(changed.select_model("simple")) == ["groq/openai/gpt-oss-20b"]
        assert names(changed.select_model("complex", "qa")) == ["xai/grok-4.7", "openai/gpt-4o"]
        assert names(changed.select_model("complex"))[0] == "openai/gpt-4o"

    def test_a_route_to_nowhere_is_refused_at_the_start(self):
        with pytest.raises(InvalidSettings, match=r"routes\.simple: 'opnai/gpt-4o' names no provider"):
            router(routes={"simple": ["opnai/gpt-4o"]})
        with pytest.raises(InvalidSettings, match=r"models: 'gpt-4o' names no provider"):
            router(models={"gpt-4o": {"vision": True}})
        off = router(routes={"simple": ["groq/m", "openai/gpt-4o"]}, providers={"groq": {"enabled": False}})
        assert names(off.select_model("simple")) == ["openai/gpt-4o"]

    @pytest.mark.parametrize(
        ("model", "provider", "candidates"),
        [
            ("gpt-4o", "auto", ["openai/gpt-4o"]),
            ("gpt-4.1-mini", "auto", ["openai/gpt-4.1-mini"]),
            ("openai/gpt-4o", "auto", ["openai/gpt-4o"]),
            ("openai/gpt-4o", "openai", ["openai/gpt-4o"]),
            ("openai/gpt-oss-20b", "groq", ["groq/openai/gpt-oss-20b"]),
            ("groq/openai/gpt-oss-20b", "auto", ["groq/openai/gpt-oss-20b"]),
            ("claude-opus-5-5", "auto", ["anthropic/claude-opus-5-5"]),
            ("not-yet-known", "mistral", ["mistral/not-yet-known"]),
            ("auto", "openai", ["openai/gpt-4o"]),
            ("auto", "deepseek", ["deepseek/deepseek-v4-pro", "deepseek/deepseek-v4-flash"]),
            ("llama3", "ollama", ["ollama/llama3"]),
            ("no-such-model", "auto", []),
            ("auto", "no-such-provider", []),
            ("auto", "ollama", []),
            ("gpt-4o", "local", []),
        ],
    )
    def test_what_is_named_is_taken_or_refused(self, model, provider, candidates):
        assert names(router().select_model("medium", model=model, provider=provider)) == candidates

    def test_images_go_to_models_that_see(self):
        chosen = names(router().select_model("medium", needs_vision=True))
        assert chosen[0] == "anthropic/claude-sonnet-5-5"
        assert not [ref for ref in chosen if ref.startswith(("deepseek", "groq"))]

    def test_an_api_filters(self):
        assert names(router().select_model("medium", api_version="responses")) == ["openai/gpt-4o"]
        assert "openai/gpt-5.3-codex" not in names(
            router().select_model("medium", "coder", api_version="chat_completions")
        )

    def test_the_default_provider_comes_before_everything(self):
        gateway = {"gate": {"base_url": "http://gate/v1"}}
        through = router(default_provider="gate", providers=gateway)
        assert names(through.select_model("simple")) == ["gate/gemini-3.8-flash"]
        assert names(through.select_model("simple", model="gpt-4o", provider="openai")) == ["gate/gpt-4o"]
        local = router(default_provider="local")
        assert names(local.select_model("complex")) == ["local/smollm2-135m-instruct"]

    def test_models_say_whether_they_can_be_asked(self, tmp_path):
        listed = router({"OPENAI_API_KEY": "k"}, local_model_path=tmp_path / "no.gguf").available_models()
        by_name = {(info.provider, info.model): info for info in listed}
        assert by_name["openai", "gpt-4o"].usable
        claude = by_name["anthropic", "claude-sonnet-5-5"]
        assert (claude.usable, "ANTHROPIC_API_KEY" in (claude.reason or "")) == (False, True)
        assert "no.gguf" in (by_name["local", "smollm2-135m-instruct"].reason or "")


class TestRefusing:
    @pytest.mark.parametrize(
        ("fields", "error", "words"),
        [
            ({"model": "gpt-4o"}, NoCandidate, r"gpt-4o.*provider openai has no key: set OPENAI_API_KEY"),
            ({"model": "gemini/gemini-3.8-flash"}, NoCandidate, "GEMINI_API_KEY or GOOGLE_API_KEY"),
            ({"provider": "nobody"}, NoCandidate, "no provider 'nobody'.*known: openai, anthropic"),
            ({"model": "no-such-model"}, NoCandidate, 'no-such-model.*write "provider/model"'),
            ({"model": "gpt-4o", "provider": "local"}, NoCandidate, "serves only smollm2-135m-instruct"),
            ({"text": IMAGE}, BadRequest, "local/smollm2-135m-instruct takes no images"),
            ({"api_version": "responses"}, BadRequest, "does not speak the responses API"),
        ],
    )
    async def test_says_what_is_missing(self, fields, error, words):
        outcome = await router({}).route(ask(**fields, complexity="simple"))
        assert type(outcome.error) is error
        with pytest.raises(error, match=words):
            raise outcome.error
        assert (outcome.completion, outcome.attempts, outcome.retryable) == (None, (), False)

    async def test_with_nothing_at_all(self):
        outcome = await router({}, local_model=False).route(ask(complexity="simple"))
        assert outcome.error is not None
        assert outcome.error.type == "model_unavailable"
        assert "GEMINI_API_KEY or GOOGLE_API_KEY, OPENAI_API_KEY" in str(outcome.error)


Route = Callable[..., Any]


@pytest.fixture
async def routed(llmock: Any) -> AsyncIterator[Route]:
    """Route a request whose candidates are the given ones, all of them llmock."""
    closing: list[Any] = []

    async def route(
        *refs: str, timeout: float | None = 30, request: LLMRequest | None = None, **over: Any
    ) -> RouteOutcome:
        rows = {name: {"base_url": llmock.base_url(name)} for name in PLAYED}
        settings = Settings(providers=rows, routes={"simple": list(refs)}, **over)
        providers = build_providers(settings, ALL_KEYS)
        closing.extend(providers.values())
        return await LLMRouter(settings, providers).route(
            request or ask(complexity="simple"), timeout=timeout
        )

    yield route
    for provider in closing:
        await provider.close()


class TestRouting:
    async def test_an_answer_with_its_price(self, llmock, routed):
        outcome = await routed("openai/gpt-4o", "groq/openai/gpt-oss-20b")
        assert outcome.error is None
        assert outcome.completion is not None
        assert str(outcome.candidate) == "openai/gpt-4o"
        (attempt,) = outcome.attempts
        assert (attempt.outcome, attempt.provider, attempt.model) == ("success", "openai", "gpt-4o")
        assert attempt.started_at.tzinfo is not None
        used = outcome.usage
        assert outcome.cost == (used.prompt_tokens * Decimal("2.5") + used.completion_tokens * 10) / 10**6

    async def test_an_unknown_price_is_none(self, llmock, routed):
        outcome = await routed("together/no-price-known")
        assert outcome.error is None
        assert outcome.usage.total_tokens > 0
        assert outcome.cost is None

    async def test_a_short_retry_after_is_waited_for(self, llmock, routed):
        llmock.rate_limit(retry_after=0.2)
        outcome = await routed("openai/gpt-4o", "groq/openai/gpt-oss-20b")
        assert [a.outcome for a in outcome.attempts] == ["rate_limited", "success"]
        assert [a.provider for a in outcome.attempts] == ["openai", "openai"]
        assert outcome.attempts[0].retry_after == 0.2
        llmock.assert_resilient(strict=True)

    async def test_a_long_retry_after_is_not_waited_for(self, llmock, routed):
        llmock.rate_limit(retry_after=60)
        outcome = await routed("openai/gpt-4o", "groq/openai/gpt-oss-20b")
        assert [(a.provider, a.outcome) for a in outcome.attempts] == [
            ("openai", "rate_limited"),
            ("groq", "success"),
        ]
        assert str(outcome.candidate) == "groq/openai/gpt-oss-20b"

    @pytest.mark.parametrize("status", [500, 503, 529])
    async def test_a_server_error_is_tried_again_then_elsewhere(self, llmock, routed, status):
        llmock.fail(status, retry_after=0.01, times=None, provider="openai")
        outcome = await routed("openai/gpt-4o", "mistral/mistral-small-latest")
        assert [a.provider for a in outcome.attempts] == ["openai", "openai", "mistral"]
        assert outcome.completion is not None
        llmock.assert_resilient(strict=True)

    @pytest.mark.parametrize("status", [401, 402, 404])
    async def test_what_no_retry_cures_goes_on_at_once(self, llmock, routed, status):
        llmock.fail(status, times=None, provider="openai")
        outcome = await routed("openai/gpt-4o", "xai/grok-4.7")
        assert [a.provider for a in outcome.attempts] == ["openai", "xai"]
        llmock.assert_resilient(strict=True)

    @pytest.mark.parametrize(
        ("status", "code", "outcome"),
        [
            (400, None, "bad_request"),
            (422, None, "bad_request"),
            (400, "content_policy_violation", "content_filtered"),
        ],
    )
    async def test_a_request_that_is_wrong_is_wrong_everywhere(self, llmock, routed, status, code, outcome):
        llmock.fail(status, code=code, times=None)
        got = await routed("openai/gpt-4o", "xai/grok-4.7")
        assert [a.outcome for a in got.attempts] == [outcome]
        assert (got.error.type, got.retryable) == (outcome, False)
        llmock.assert_resilient(strict=True)

    async def test_a_prompt_too_long_for_one_may_fit_another(self, llmock, routed):
        llmock.context_overflow(provider="openai")
        outcome = await routed("openai/gpt-4o", "xai/grok-4.7")
        assert [a.outcome for a in outcome.attempts] == ["context_too_long", "success"]

    async def test_when_all_fail_the_curable_failure_is_told_with_the_smallest_wait(self, llmock, routed):
        llmock.fail(401, times=None, provider="openai")
        llmock.rate_limit(retry_after=60, times=None, provider="groq")
        llmock.rate_limit(retry_after=30, times=None, provider="xai")
        outcome = await routed("openai/gpt-4o", "groq/openai/gpt-oss-20b", "xai/grok-4.7")
        assert [a.outcome for a in outcome.attempts] == [
            "authentication_failed",
            "rate_limited",
            "rate_limited",
        ]
        assert isinstance(outcome.error, TooManyRequests)
        assert (outcome.retryable, outcome.retry_after) == (True, 30)
        assert outcome.cost is None

    async def test_when_none_is_curable_the_first_is_told(self, llmock, routed):
        llmock.fail(401, times=None, provider="openai").fail(404, times=None, provider="xai")
        outcome = await routed("openai/gpt-4o", "xai/grok-4.7")
        assert (outcome.error.type, outcome.retryable) == ("authentication_failed", False)

    async def test_retries_are_as_many_as_the_settings_say(self, llmock, routed):
        llmock.fail(500, retry_after=0, times=None)
        for retries in (0, 3):
            outcome = await routed("openai/gpt-4o", router_retries=retries)
            assert len(outcome.attempts) == 1 + retries

    async def test_the_time_is_shared_by_all_candidates(self, llmock, routed):
        llmock.delay(2, times=None)
        outcome = await routed("openai/gpt-4o", "groq/openai/gpt-oss-20b", "xai/grok-4.7", timeout=0.2)
        assert outcome.error.type == "provider_timeout"
        assert [a.provider for a in outcome.attempts] == ["openai"]

    async def test_a_vendor_has_a_timeout_of_its_own(self, llmock, routed):
        llmock.delay(2, provider="openai", times=None)
        outcome = await routed(
            "openai/gpt-4o", "groq/openai/gpt-oss-20b", provider_timeout=0.2, router_retries=0
        )
        assert [a.outcome for a in outcome.attempts] == ["provider_timeout", "success"]

    async def test_a_model_that_was_named_is_never_replaced(self, llmock, routed):
        llmock.outage(provider="openai")
        outcome = await routed("xai/grok-4.7", request=ask(model="gpt-4o"), router_retries=0)
        assert {a.model for a in outcome.attempts} == {"gpt-4o"}
        assert outcome.error.type == "provider_unavailable"

    async def test_a_fault_of_our_own_is_a_failure_with_a_traceback_in_the_log(self, caplog):
        class Broken:
            name = "openai"

            async def complete(self, request: LLMRequest, model: str, *, timeout: float) -> Completion:
                raise ZeroDivisionError("oops")

            async def close(self) -> None: ...

        outcome = await LLMRouter(Settings(), {"openai": Broken()}).route(ask(complexity="complex"))
        assert isinstance(outcome.error, InternalFailure)
        assert (outcome.error.type, outcome.retryable) == ("internal", False)
        assert "ZeroDivisionError: oops" in caplog.text
