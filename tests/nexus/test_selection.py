"""Who is asked, in which order, and why: the choice of a model as a pure function."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar

import pytest

from pgnexus.errors import BadRequest, ContextTooLong, NoCandidate
from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.nexus.selection import (
    DEFAULT_ROUTES,
    NO_ROUTE,
    Candidate,
    Conditions,
    Needs,
    Selection,
    Selector,
    Standing,
    Wanted,
)
from pgnexus.policy import RouteSettings
from pgnexus.providers.catalogue import catalogue
from pgnexus.providers.models import card
from pgnexus.settings import Settings

HOUSE = {"house": {"base_url": "http://house/v1", "models": ["usual"]}}
EVERYBODY = frozenset(catalogue(Settings()))


def selector(usable: frozenset[str] = EVERYBODY, **settings: Any) -> Selector:
    loaded = Settings(**{"providers": HOUSE, **settings})
    return Selector(loaded, catalogue(loaded), usable | {"house"})


def names(selection: Selection) -> list[str]:
    return [str(candidate) for candidate in selection.candidates]


class TestPrecedence:
    ALL = (
        "complex/review@ann",
        "*/review@ann",
        "complex@ann",
        "*@ann",
        "complex/review",
        "*/review",
        "complex",
    )

    @pytest.mark.parametrize("first", range(len(ALL)))
    def test_the_most_particular_row_holds(self, first: int) -> None:
        table = {name: [f"house/{place}"] for place, name in enumerate(self.ALL) if place >= first}
        chosen = selector(routes=table).select(Wanted("complex", "review", "ann"))
        assert (chosen.name, names(chosen)) == (self.ALL[first], [f"house/{first}"])

    @pytest.mark.parametrize(
        ("complexity", "task_type", "agent", "name"),
        [
            ("complex", "review", "bob", "complex/review"),
            ("complex", "review", None, "complex/review"),
            ("simple", "review", "ann", "*/review@ann"),
            ("simple", "review", "bob", "*/review"),
            ("complex", "other", "ann", "complex@ann"),
            ("medium", None, "ann", "*@ann"),
            ("complex", None, None, "complex"),
            ("simple", "other", "bob", "simple"),
            ("complex", "review@ann", None, "complex"),
        ],
    )
    def test_others_take_what_is_theirs(
        self, complexity: Any, task_type: str | None, agent: str | None, name: str
    ) -> None:
        table = {row: ["house/m"] for row in self.ALL}
        assert selector(routes=table).select(Wanted(complexity, task_type, agent)).name == name

    def test_the_routes_rules_come_with_it(self) -> None:
        row = {"models": ["house/m"], "cache": 60, "share": "all", "over_limit": "wait"}
        chosen = selector(routes={"simple": row}).select(Wanted("simple"))
        assert (chosen.route.cache, chosen.route.share, chosen.route.over_limit) == (60, "all", "wait")
        assert chosen.route.longer_context

    def test_who_names_a_model_is_under_no_route(self) -> None:
        row = {"models": ["house/m"], "cache": 60}
        named = selector(routes={"simple": row}).select(Wanted("simple", model="house/m"))
        assert (named.name, named.route, names(named)) == ("", NO_ROUTE, ["house/m"])
        assert (NO_ROUTE.cache, NO_ROUTE.share, NO_ROUTE.order) == (None, "agent", "route")
        provider = selector(routes={"simple": row}).select(Wanted("simple", provider="house"))
        assert (provider.name, provider.route.cache) == ("simple", 60)

    def test_a_model_named_twice_is_asked_once(self) -> None:
        assert names(
            selector(routes={"simple": ["house/a", "house/b", "house/a"]}).select(Wanted("simple"))
        ) == [*("house/a", "house/b")]

    def test_every_default_route_is_known_to_the_price_list(self) -> None:
        vendors = catalogue(Settings())
        for row in DEFAULT_ROUTES.values():
            for candidate in map(Candidate.named, row.models):
                assert card(vendors[candidate.provider], candidate.model, Settings()).price is not None


class TestOrder:
    MODELS = ("house/a", "house/b", "house/c", "house/d")

    def chosen(self, order: str, conditions: Conditions | None = None, **settings: Any) -> list[str]:
        table = {"simple": {"models": list(self.MODELS), "order": order}}
        picked = selector(routes=table, **settings).select(Wanted("simple"), conditions or {})
        return [name.removeprefix("house/") for name in names(picked)]

    def test_as_written(self) -> None:
        prices = {"house/c": {"input_price": 1, "output_price": 1}}
        assert self.chosen("route", models=prices) == ["a", "b", "c", "d"]

    def test_by_price_three_of_the_prompt_to_one_of_the_answer(self) -> None:
        prices = {
            "house/b": {"input_price": 2, "output_price": 2},
            "house/c": {"input_price": "1", "output_price": "4.9"},  # 1.975
            "house/d": {"input_price": 1},  # an unknown price is not a small one
        }
        assert self.chosen("price", models=prices) == ["c", "b", "a", "d"]

    def test_by_the_price_list(self) -> None:
        table = {"simple": {"models": ["openai/gpt-4o", "openai/gpt-4o-mini"], "order": "price"}}
        assert names(selector(routes=table).select(Wanted("simple")))[0] == "openai/gpt-4o-mini"

    def test_by_latency(self) -> None:
        conditions = {
            Candidate("house", "b"): Standing(latency_ms=900),
            Candidate("house", "d"): Standing(latency_ms=200, success_rate=0.1),
        }
        assert self.chosen("latency", conditions) == ["d", "b", "a", "c"]

    def test_by_success(self) -> None:
        conditions = {
            Candidate("house", "a"): Standing(success_rate=0.0),
            Candidate("house", "b"): Standing(success_rate=0.9),
            Candidate("house", "c"): Standing(success_rate=0.99),
        }
        assert self.chosen("success_rate", conditions) == ["c", "b", "a", "d"]

    def test_to_explore_is_to_ask_first_those_of_which_nothing_is_known(self) -> None:
        conditions = {
            Candidate("house", "b"): Standing(latency_ms=900, success_rate=1.0),
            Candidate("house", "c"): Standing(success_rate=0.0),  # it never answered, and that is known
            Candidate("house", "d"): Standing(latency_ms=200, success_rate=1.0),
        }
        explored = {
            order: names(
                selector(routes={"simple": {"models": list(self.MODELS), "order": order}}).select(
                    Wanted("simple"), conditions, explore=True
                )
            )[0]
            for order in ("latency", "success_rate", "price", "route")
        }
        assert explored == dict.fromkeys(explored, "house/a")
        assert self.chosen("latency", conditions) == ["d", "b", "a", "c"]
        table = {"simple": {"models": ["house/c", "house/d", "house/a"], "order": "latency"}}
        found = selector(routes=table).select(Wanted("simple"), conditions, explore=True)
        assert names(found) == ["house/a", "house/d", "house/c"]

    def test_ties_stay_as_written(self) -> None:
        same = {Candidate("house", name): Standing(latency_ms=100) for name in "abcd"}
        assert self.chosen("latency", same) == ["a", "b", "c", "d"]
        assert self.chosen("latency", {}) == ["a", "b", "c", "d"]

    def test_the_conditions_of_the_moment_count_not_those_of_before(self) -> None:
        table = {"simple": {"models": ["house/a", "house/b"], "order": "latency"}}
        here = selector(routes=table)
        assert here.by_standing
        for fast in ("b", "a", "b"):
            conditions = {Candidate("house", fast): Standing(latency_ms=1)}
            assert names(here.select(Wanted("simple"), conditions))[0] == f"house/{fast}"

    def test_nobody_has_to_watch_when_no_route_asks_how_they_do(self) -> None:
        assert not selector(routes={"simple": {"models": ["house/a"], "order": "price"}}).by_standing

    def test_an_open_breaker_keeps_its_place(self) -> None:
        conditions = {Candidate("house", "a"): Standing(breaker_open=8.0)}
        assert self.chosen("route", conditions) == ["a", "b", "c", "d"]


class TestNeeds:
    MODELS: ClassVar = {
        "house/blind": {"vision": False},
        "house/plain": {"tools": False, "json_schema": False},
        "house/short": {"context_length": 1000},
    }
    ROUTE: ClassVar = ["house/blind", "house/plain", "house/short", "house/unknown"]

    def chosen(self, needs: Needs, **row: Any) -> Selection:
        table = {"simple": {"models": self.ROUTE, **row}}
        return selector(routes=table, models=self.MODELS).select(Wanted("simple", needs=needs))

    @pytest.mark.parametrize(
        ("needs", "out"),
        [
            (Needs(), set()),
            (Needs(vision=True), {"house/blind"}),
            (Needs(tools=True), {"house/plain"}),
            (Needs(json_schema=True), {"house/plain"}),
            (Needs(vision=True, tools=True), {"house/blind", "house/plain"}),
            (Needs(prompt_tokens=1000), set()),
            (Needs(prompt_tokens=1001), {"house/short"}),
            (Needs(vision=True, prompt_tokens=10**9), {"house/blind", "house/short"}),
        ],
    )
    def test_only_what_is_known_not_to_do_is_left_out(self, needs: Needs, out: set[str]) -> None:
        assert names(self.chosen(needs)) == [name for name in self.ROUTE if name not in out]

    def test_when_none_does_it_the_refusal_says_so(self) -> None:
        here = selector(routes={"simple": ["house/blind"]}, models=self.MODELS)
        refusal = here.select(Wanted("simple", needs=Needs(vision=True))).refusal
        assert isinstance(refusal, BadRequest)
        assert str(refusal) == "complexity simple: house/blind takes no images"

    def test_when_none_is_long_enough_it_is_a_prompt_too_long(self) -> None:
        here = selector(routes={"simple": ["house/short"]}, models=self.MODELS)
        refusal = here.select(Wanted("simple", needs=Needs(prompt_tokens=2000))).refusal
        assert isinstance(refusal, ContextTooLong)
        assert "house/short takes 1,000 tokens, and the prompt has 2,000 at least" in str(refusal)

    def test_a_route_may_forbid_that_another_takes_a_long_prompt(self) -> None:
        table = {"simple": {"models": ["house/short", "house/unknown"], "longer_context": False}}
        here = selector(routes=table, models=self.MODELS)
        assert (
            names(here.select(Wanted("simple", needs=Needs(prompt_tokens=10)))) == table["simple"]["models"]
        )
        refusal = here.select(Wanted("simple", needs=Needs(prompt_tokens=2000))).refusal
        assert isinstance(refusal, ContextTooLong)
        assert "route simple has no other take its place" in str(refusal)

    def test_a_named_model_that_cannot_is_refused(self) -> None:
        here = selector(models=self.MODELS)
        for needs, error in (
            (Needs(vision=True), BadRequest),
            (Needs(prompt_tokens=10**6), None),
        ):
            refusal = here.select(Wanted("simple", model="house/blind", needs=needs)).refusal
            assert refusal is None if error is None else isinstance(refusal, error)

    def test_of_the_catalogue(self) -> None:
        tools = names(selector().select(Wanted("simple", needs=Needs(json_schema=True))))
        assert "openai/gpt-4o-mini" in tools
        assert "deepseek/deepseek-v4-flash" not in tools

    def test_what_a_request_needs(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 8000}}
        request = LLMRequest(
            request_id=new_request_id(),
            messages=[
                {"role": "system", "content": "x" * 800},
                {"role": "user", "content": [{"type": "text", "text": "y" * 800}, image]},
            ],
            tools=[{"type": "function", "function": {"name": "f"}}],
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
            api_version="responses",
        )
        assert Needs.of(request) == Needs(True, "responses", True, True, 200)
        assert Needs.of(
            LLMRequest(request_id=new_request_id(), messages=[{"role": "user", "content": "Hi"}])
        ) == (Needs())

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("word " * 16_000, 10_000),
            ("x" * 80_000, 1),
            ("-" * 80_000 + " and " + " " * 80_000 + "so on", 4),
            ("漢字" * 40_000, 1),
            ("x" * 8_000, 1_000),
        ],
        ids=["words", "one word", "rulers and spaces", "no spaces", "short"],
    )
    def test_a_prompt_is_never_counted_too_long(self, text: str, tokens: int) -> None:
        request = LLMRequest(request_id=new_request_id(), messages=[{"role": "user", "content": text}])
        assert Needs.of(request).prompt_tokens == tokens


class TestRefusing:
    def test_a_provider_that_is_switched_off(self) -> None:
        here = selector(providers={**HOUSE, "openai": {"enabled": False}})
        refusal = here.select(Wanted("simple", provider="openai")).refusal
        assert isinstance(refusal, NoCandidate)
        assert str(refusal) == "provider openai: provider openai is switched off (providers.openai.enabled)"

    def test_no_key(self) -> None:
        here = selector(EVERYBODY - {"openai"})
        refusal = here.select(Wanted("simple", model="gpt-4o")).refusal
        assert "provider openai has no key: set OPENAI_API_KEY where the nexus runs" in str(refusal)


class TestExplaining:
    def told(self, here: Selector, wanted: Wanted, conditions: Conditions | None = None) -> dict[str, Any]:
        explained = here.explain(wanted, conditions or {})
        positions = [one.position for one in explained.considered if one.position is not None]
        assert positions == list(range(1, len(positions) + 1))
        return explained.to_json()

    def test_each_model_of_the_route_has_its_reason(self) -> None:
        table = {
            "complex/review": {
                "models": ["openai/gpt-4o", "house/b", "house/a", "xai/x", "house/blind"],
                "order": "price",
            }
        }
        here = selector(
            EVERYBODY - {"xai"},
            routes=table,
            models={"house/a": {"input_price": 1, "output_price": 2}, "house/blind": {"vision": False}},
        )
        told = self.told(here, Wanted("complex", "review", "ann", needs=Needs(vision=True)))
        assert (told["route"], told["from_settings"]) == ("complex/review", True)
        assert told["looked_for"] == [
            *("complex/review@ann", "*/review@ann", "complex@ann", "*@ann"),
            *("complex/review", "*/review", "complex"),
        ]
        shown = [(one["position"], one["model"], one["value"], one["why_out"]) for one in told["considered"]]
        assert shown == [
            (1, "house/a", "$1.25 a million tokens", None),
            (2, "openai/gpt-4o", "$4.375 a million tokens", None),
            (3, "house/b", "price unknown", None),
            (None, "xai/x", "price unknown", "provider xai has no key: set XAI_API_KEY where the nexus runs"),
            (None, "house/blind", "price unknown", "takes no images"),
        ]
        others = {one["provider"]: one["why_out"] for one in told["others"]}
        assert others["mistral"] == "not on this route"

    def test_an_open_breaker_is_told(self) -> None:
        here = selector(routes={"simple": {"models": ["house/a", "house/b"], "order": "latency"}})
        conditions = {
            Candidate("house", "a"): Standing(latency_ms=12.3, breaker_open=8.2),
            Candidate("house", "b"): Standing(latency_ms=1234.5),
        }
        told = self.told(here, Wanted("simple"), conditions)
        assert [(one["model"], one["value"], one["why_out"]) for one in told["considered"]] == [
            ("house/b", "1,234 ms", None),
            ("house/a", "12 ms", "its breaker is open: left alone for 8.2 s more"),
        ]

    def test_success_in_words(self) -> None:
        here = selector(routes={"simple": {"models": ["house/a"], "order": "success_rate"}})
        told = self.told(here, Wanted("simple"), {Candidate("house", "a"): Standing(success_rate=0.987)})
        assert told["considered"][0]["value"] == "98.7% successful"

    def test_who_takes_the_place_of_a_route_without_a_key(self) -> None:
        told = self.told(selector(frozenset()), Wanted("simple"))
        assert [one["model"] for one in told["considered"] if one["position"]] == ["house/usual"]
        assert told["considered"][0]["origin"] == "instead of route simple"

    def test_a_refusal_is_told_with_its_reason(self) -> None:
        told = self.told(selector(), Wanted("simple", model="no-such-model"))
        assert (told["route"], told["considered"]) == (None, [])
        assert "no-such-model" in told["refusal"]

    def test_a_provider_that_is_switched_off_is_told(self) -> None:
        here = selector(providers={**HOUSE, "groq": {"enabled": False}}, routes={"simple": ["house/a"]})
        others = {one["provider"]: one["why_out"] for one in self.told(here, Wanted("simple"))["others"]}
        assert others["groq"] == "provider groq is switched off (providers.groq.enabled)"

    @pytest.mark.parametrize(
        "wanted",
        [
            Wanted("simple"),
            Wanted("complex", "architect"),
            Wanted("medium", needs=Needs(vision=True, prompt_tokens=200_000)),
            Wanted("medium", provider="deepseek"),
            Wanted("medium", model="gpt-4o"),
        ],
        ids=str,
    )
    def test_it_tells_what_is_chosen(self, wanted: Wanted) -> None:
        here = selector()
        asked = [str(one.candidate) for one in here.explain(wanted).considered if one.position]
        assert asked == names(here.select(wanted)) != []


def test_all_that_decides_comes_from_the_request() -> None:
    asked = LLMRequest(
        request_id=new_request_id(),
        messages=[{"role": "user", "content": "Design the architecture of a distributed queue."}],
        complexity="auto",
        task_type="poetry",
        agent_id="ann",
        model="gpt-4o",
        provider="openai",
        tools=[{"type": "function", "function": {"name": "f"}}],
    )
    needs = Needs(tools=True, prompt_tokens=5)
    assert Wanted.by(asked) == Wanted("complex", "poetry", "ann", "gpt-4o", "openai", needs)


class TestRemembering:
    def test_task_types_and_agents_without_a_route_take_no_memory(self) -> None:
        here = selector()
        for number in range(100):
            here.select(
                Wanted("medium", f"kind-{number}", f"agent-{number}", needs=Needs(prompt_tokens=number))
            )
        assert len(here._pools._known) == 1

    def test_a_refusal_is_not_remembered(self) -> None:
        usable: set[str] = set()
        here = Selector(Settings(local_model=False), catalogue(Settings()), usable)
        assert here.select(Wanted("simple")).refusal is not None
        usable.add("openai")
        assert names(here.select(Wanted("simple"))) == ["openai/gpt-4o-mini"]


def test_rows_of_routes_are_what_settings_make_of_lists() -> None:
    loaded = Settings(routes={"simple": ["house/a"]}, providers=HOUSE)
    assert loaded.routes["simple"] == RouteSettings(models=["house/a"])
    assert Decimal(1) == Settings(models={"house/a": {"input_price": 1}}).models["house/a"].input_price
