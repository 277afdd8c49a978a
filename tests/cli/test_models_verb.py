"""`models`: what each can and costs, and why a request goes to whom."""

from __future__ import annotations

import pytest

ROWS = (
    '{"mock/priced": {"context_length": 1234, "vision": true, "tools": false, "input_price": 0.5, '
    '"output_price": 2}}'
)


class TestTheList:
    def test_it_tells_what_is_known(self, run):
        over = {"PGNEXUS_PROVIDERS__MOCK__MODELS": '["priced", "strange"]', "PGNEXUS_MODELS": ROWS}
        found = {(one["provider"], one["model"]): one for one in run("models", "--json", **over).documents}
        priced, strange = found["mock", "priced"], found["mock", "strange"]
        assert (priced["context_length"], priced["vision"], priced["tools"]) == (1234, True, False)
        assert (priced["input_price"], priced["output_price"], priced["json_schema"]) == ("0.5", "2", None)
        assert {strange[name] for name in ("context_length", "vision", "input_price")} == {None}
        shown = [line.split() for line in run("models", **over, COLUMNS="").out.splitlines()]
        assert ["✓", "mock", "priced", "1.2k", "images", "schema?", "0.5", "/", "2"] in shown
        assert ["✓", "mock", "strange", "?", "images?", "tools?", "schema?", "?", "/", "?"] in shown


class TestExplaining:
    ROUTES = (
        '{"simple": ["mock/usual"], "*/architect@ann": {"models": ["mock/b", "mock/a", "groq/c"], "order": "price", '
        '"cache": 60, "share": "all", "over_limit": "wait", "longer_context": false}}'
    )
    MODELS = '{"mock/a": {"input_price": 1, "output_price": 1}, "mock/b": {"vision": false}}'

    @pytest.fixture
    def explain(self, run):
        def explain(*words: str) -> str:
            over = {"PGNEXUS_ROUTES": self.ROUTES, "PGNEXUS_MODELS": self.MODELS, "GROQ_API_KEY": ""}
            ended = run("models", "--explain", *words, unset=("PGNEXUS_DEFAULT_PROVIDER",), **over)
            assert (ended.code, ended.err) == (0, ""), ended
            return ended.out

        return explain

    def test_the_route_its_rules_and_each_model(self, explain):
        told = explain("complex", "architect", "--agent", "ann")
        for words in (
            "route */architect@ann (settings), by price",
            "looked for complex/architect@ann, */architect@ann, complex@ann, *@ann, complex/architect",
            "answers may be given again for 60 s",
            "cached and shared answers go to all agents",
            "a prompt too long for the first goes to no other",
            "a candidate over its limit is waited for",
        ):
            assert words in told
        rows = [" ".join(line.split()) for line in told.splitlines()]
        assert "1 mock/a $1 a million tokens route */architect@ann" in rows
        assert "2 mock/b price unknown route */architect@ann" in rows
        assert "· groq/c price unknown set GROQ_API_KEY" in rows

    def test_what_a_request_needs(self, explain):
        rows = [
            " ".join(line.split()) for line in explain("architect", "--agent", "ann", "--vision").splitlines()
        ]
        assert "· mock/b price unknown takes no images" in rows
        assert "1 mock/a $1 a million tokens route */architect@ann" in rows

    def test_a_refusal(self, explain):
        told = explain("simple", "--model", "no-such-model")
        assert (
            'refused: model no-such-model: no provider is known to serve it; write "provider/model"' in told
        )
        assert "no route: a request that names its model gets that one or none" in told

    def test_how_they_do_now(self, run):
        routes = '{"simple": {"models": ["mock/slow", "mock/gpt-4o"], "order": "latency"}}'
        run("ask", "hello", "--model", "mock/gpt-4o")
        words = ("models", "--explain", "simple", "--live", "--json")
        found = run(*words, unset=("PGNEXUS_DEFAULT_PROVIDER",), PGNEXUS_ROUTES=routes).document["considered"]
        assert [one["model"] for one in found] == ["mock/gpt-4o", "mock/slow"]
        assert found[0]["value"].endswith(" ms")
        assert found[1]["value"] == "latency unknown"

    def test_without_a_database(self, run):
        nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
        assert run("models", "--explain", "simple", PGNEXUS_DATABASE_URL=nowhere).code == 0

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--explain", "complx"], "'complx' is none of simple, medium, complex"),
            (["simple", "architect"], "COMPLEXITY and TASK_TYPE are for --explain"),
        ],
    )
    def test_wrong_words(self, run, words, said):
        ended = run("models", *words)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
