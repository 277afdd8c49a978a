"""`queues`, `models`, `doctor`, `migrate`, `roles`, `version`, `demo`, and the command itself."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pgnexus.cli import app, exits
from pgnexus.errors import PgnexusError, UnsuitableDatabase


@pytest.fixture
def invoke(env, monkeypatch):
    """The command in this process, for what needs no other."""
    for name in ("ANTHROPIC_API_KEY", "CO_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    for name, value in env.items():
        if name.startswith("PGNEXUS_"):
            monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, arguments)


class TestQueues:
    def test_depths_and_activity(self, invoke, run):
        for _ in range(2):
            run("ask", "hello", "--no-wait", "--priority", "batch")
        found = json.loads(invoke("queues", "--json").stdout)
        depths = {one["queue"]: one["depth"] for one in found["queues"]}
        assert depths["ai_requests_batch"] == 2
        assert depths["ai_results"] == 0
        assert found["instances"] == 0
        shown = invoke("queues").stdout
        assert "ai_requests_interactive" in shown
        assert "no nexus alive" in shown

    def test_calls_of_late(self, run):
        run("ask", "hello")
        assert "1 provider calls" in run("queues").out


class TestModels:
    def test_without_a_nexus_it_is_what_one_here_could_use(self, invoke):
        models = [json.loads(line) for line in invoke("models", "--json").stdout.splitlines()]
        usable = [model["usable"] for model in models]
        assert usable == sorted(usable, reverse=True)
        assert {model["provider"] for model in models if model["usable"]} >= {"openai"}
        anthropic = next(model for model in models if model["provider"] == "anthropic")
        assert "ANTHROPIC_API_KEY" in anthropic["reason"]
        assert "no nexus is alive" in invoke("models").stderr

    def test_with_one_it_is_what_that_knows(self, invoke, start):
        start("up", PGNEXUS_PROVIDERS__MOCK__MODELS='["a-model-of-its-own"]').wait_for("ready")
        assert "a-model-of-its-own" in invoke("models").stdout


class TestDoctor:
    def test_all_is_well(self, invoke):
        ended = invoke("doctor", "--json")
        assert ended.exit_code == 0
        found = {one["check"]: one for one in json.loads(ended.stdout)["findings"]}
        states = {
            check: found[check]["state"] for check in ("database", "schema", "queues", "listen", "keys")
        }
        assert set(states.values()) == {"ok"}, found
        assert "OPENAI_API_KEY" in found["keys"]["found"]
        assert "sk-very-secret" not in ended.stdout + invoke("doctor").stdout

    def test_a_database_without_a_schema(self, invoke, empty_database_url):
        ended = invoke("doctor", "--database-url", empty_database_url)
        assert ended.exit_code == exits.DATABASE
        assert "pgnexus migrate" in ended.stdout

    def test_no_database(self, invoke):
        ended = invoke("doctor", "--json", "--database-url", "postgresql://me:secret@127.0.0.1:1/x")
        assert ended.exit_code == exits.DATABASE
        assert json.loads(ended.stdout)["healthy"] is False
        assert "secret" not in ended.output

    def test_nobody_could_answer(self, invoke, monkeypatch):
        monkeypatch.setenv("PGNEXUS_PROVIDERS__MOCK__ENABLED", "false")
        monkeypatch.delenv("PGNEXUS_DEFAULT_PROVIDER")
        monkeypatch.delenv("OPENAI_API_KEY")
        ended = invoke("doctor")
        assert ended.exit_code == exits.FAILED, ended.output
        assert "OPENAI_API_KEY" in ended.stdout
        assert "see keys and local" in ended.stdout

    def test_without_extras_it_says_what_to_install_and_nothing_else(self, invoke, monkeypatch):
        monkeypatch.setitem(sys.modules, "genai_prices", None)
        monkeypatch.setenv("PGNEXUS_LOCAL_MODEL", "true")
        ended = invoke("doctor", "--json")
        assert ended.exit_code == exits.FAILED, ended.output
        found = {one["check"]: one for one in json.loads(ended.stdout)["findings"]}
        assert "pgnexus[providers]" in found["providers"]["found"]
        assert "pgnexus[local]" in found["local"]["advice"]
        assert found["nexus"]["advice"] == "see providers"

    def test_without_a_server_to_start_there_is_one_advice(self, invoke, monkeypatch, tmp_path):
        monkeypatch.delenv("PGNEXUS_DATABASE_URL")
        monkeypatch.setattr("pgnexus.db.embedded.Binaries.find", no_server)
        monkeypatch.setattr("pgnexus.db.embedded.EmbeddedServer._make_data_dir", lambda *_: None)
        ended = invoke("doctor", "--json", "--data-dir", str(tmp_path))
        found = {one["check"]: one for one in json.loads(ended.stdout)["findings"]}
        assert found["database"]["found"] == "there is no PostgreSQL to start here"
        assert found["database"]["advice"] is None


def no_server(*_):
    raise UnsuitableDatabase("there is no PostgreSQL to start here")


class TestInstallation:
    def test_migrate_twice(self, invoke, empty_database_url):
        first = invoke("migrate", "--json", "--database-url", empty_database_url)
        assert "0001" in str(json.loads(first.stdout)["applied"])
        again = invoke("migrate", "--json", "--database-url", empty_database_url)
        assert json.loads(again.stdout)["applied"] == []
        assert invoke("migrate", "--database-url", empty_database_url).exit_code == 0

    def test_roles(self, invoke):
        ended = invoke("roles")
        assert ended.exit_code == 0
        assert "grant pgnexus_caller" in ended.stderr

    def test_version(self, invoke):
        assert "pgnexus" in json.loads(invoke("version", "--json").stdout)
        assert invoke("version").stdout.startswith("pgnexus ")


class TestEmbedded:
    def test_nothing_has_to_be_set_up(self, run, server_dir, pg_bin):
        if pg_bin is not None:
            pytest.skip("the embedded server is the one of the wheel")
        place = ("--data-dir", str(server_dir / "data"))
        ended = run("requests", "--json", *place, unset=("PGNEXUS_DATABASE_URL",))
        assert (ended.code, ended.out) == (0, ""), ended
        ended = run("demo", "--json", *place, unset=("PGNEXUS_DATABASE_URL",))
        assert ended.code == 0, ended
        times = ended.document["timeline"]
        way = ("enqueued_at", "consumed_at", "asked_at", "answered_at", "published_at", "finished_at")
        assert all(times[name] for name in way)


class TestCommand:
    def test_it_runs_as_a_module(self, run_apart):
        ended = run_apart("ask", "hello", "--json")
        assert ended.code == 0, ended
        assert ended.document["status"] == "success"

    def test_demo_shows_the_whole_way(self, run, llmock):
        llmock.reply("Paris it is.")
        ended = run("demo", "What is the capital of France?")
        assert ended.code == 0, ended
        for step in ("stored", "queued", "consumed", "routed", "answered", "published", "polled"):
            assert step in ended.out
        assert "Paris it is." in ended.out
        assert "request_id" in ended.out

    def test_help_names_every_verb_and_needs_no_database(self, run):
        ended = run("--help", PGNEXUS_DATABASE_URL="postgresql://127.0.0.1:1/x")
        assert ended.code == 0
        for verb in (
            "up",
            "ask",
            "batch",
            "result",
            "requests",
            "cancel",
            "retry",
            "queues",
            "models",
            "doctor",
        ):
            assert f" {verb} " in ended.out

    def test_a_reader_that_has_seen_enough(self, env):
        command = f"{sys.executable} -m pgnexus models --json | head -1"
        ended = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, check=True)
        assert "Traceback" not in ended.stderr
        assert len(ended.stdout.splitlines()) == 1

    def test_every_error_has_an_exit_code(self):
        def leaves(kind):
            return [leaf for sub in kind.__subclasses__() for leaf in leaves(sub)] or [kind]

        for kind in leaves(PgnexusError):
            error = kind.__new__(kind)
            assert exits.code_for(error) in range(1, 131)
        assert f"{exits.INTERRUPTED}" in (exits.__doc__ or "")

    def test_without_a_verb_it_is_the_help(self, run):
        ended = run()
        assert ended.code == exits.USAGE
        assert " doctor " in ended.out + ended.err
        assert "error:" not in ended.out + ended.err
