"""`flow`: flows and runs listed, drawn, started, followed, steered; and what is said when that cannot be."""

import asyncio
import json
import signal

import psycopg
import pytest

from pgnexus import Actions, FlowBuilder
from pgnexus.db.database import Database
from pgnexus.flow.work.plans import compile_flow
from tests.cli import flows

HERE = "tests.cli.flows"


async def known(database_url, flow):
    """Have the database know a flow."""
    db = await Database.open(database_url)
    await compile_flow(db, flow)
    await db.close()


@pytest.fixture
def ran(run):
    """A run of the flow `words` that has completed."""
    return run(
        "flow", "start", f"{HERE}:words", "-i", '"so loud a text"', "--wait", "--work", "--json"
    ).document


@pytest.fixture
def waiting(run, start):
    """A run of the flow `approved` that waits for its signal."""
    start("up", "--only", "flows", "--flow", f"{HERE}:approved").wait_for("ready")
    run_id = run("flow", "start", "approved").out.strip()
    while run("flow", "run", run_id, "--json").document["steps"][1]["waits_for"] != "signal":
        pass
    return run_id


class TestStart:
    def test_a_flow_of_a_module_in_this_process(self, ran):
        assert ran["status"] == "completed"
        assert ran["output"] == {"total": {"letters": 11, "loud": "SO LOUD A TEXT"}}
        assert ran["flow"] == "words"

    def test_without_json_it_prints_the_output_and_a_line_about_it(self, run):
        ended = run("flow", "start", f"{HERE}:each", "-i", "[1, 2]", "--wait", "--work")
        assert ended.code == 0, ended
        assert json.loads(ended.out) == {"double": [2, 4]}
        assert "1 steps" in ended.err

    def test_a_name_is_stored_for_others_to_run(self, run, ran):
        ended = run("flow", "start", "words", "-i", "-", stdin='"piped"')
        assert ended.code == 0, ended
        assert run("flow", "run", ended.out.strip(), "--json").document["status"] == "started"

    def test_the_same_key_starts_once(self, run, ran):
        first, again = (
            run("flow", "start", "words", "-i", '"x"', "-k", "k", "--json").document for _ in "12"
        )
        assert first == {"run_id": again["run_id"], "created": True}
        assert again["created"] is False
        ended = run("flow", "start", "words", "-i", '"another"', "-k", "k")
        assert ended.code == 2, ended

    def test_a_run_that_fails(self, run):
        ended = run("flow", "start", f"{HERE}:broken", "--wait", "--work", "--json")
        assert ended.code == 1
        assert ended.document["status"] == "failed"
        assert ended.error["type"] == "run_failed"
        assert ended.error["run_id"] == ended.document["run_id"]
        assert "step breaks" in ended.error["message"]
        assert "on fire" in ended.error["message"]

    def test_no_end_in_time(self, run, ran):
        ended = run("flow", "start", "words", "-i", '"x"', "--wait", "--timeout", "0.05", "--json")
        assert ended.code == 4
        assert ended.error["type"] == "run_pending"
        assert run("flow", "run", ended.error["run_id"]).code == 4

    def test_input_from_a_file(self, run, tmp_path):
        file = tmp_path / "input.json"
        file.write_text("[21]")
        ended = run("flow", "start", f"{HERE}:each", "-i", f"@{file}", "--wait", "--work")
        assert json.loads(ended.out) == {"double": [42]}

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ('{"a": tru}', "line 1, column 7: expecting value"),
            ('{\n  "a" 1}', "line 2, column 7"),
            ("hello", """a text goes in quotes of its own: '"hello"'"""),
            ("", "it is empty"),
            ("@/no/such/file", "/no/such/file"),
        ],
    )
    def test_input_that_is_no_json(self, run, given, said):
        ended = run("flow", "start", f"{HERE}:words", "-i", given)
        assert ended.code == 2
        assert said in ended.err
        assert ended.err.startswith("error: --input")

    def test_input_that_does_not_fit(self, run, ran):
        ended = run("flow", "start", f"{HERE}:words", "-i", "7")
        assert ended.code == 2
        assert "split" in ended.err
        run("flow", "start", f"{HERE}:each", "-i", "[]")
        ended = run("flow", "start", "each", "-i", "7")
        assert (ended.code, "not an array" in ended.err) == (2, True), ended

    @pytest.mark.parametrize(
        ("name", "code", "said"),
        [
            ("wrods", 6, "did you mean 'words'?"),
            ("somethingelse", 6, ", words"),
            (f"{HERE}:nothing", 2, "its flows are words, asked"),
            ("no.such.module:flow", 2, "cannot be imported"),
            ("tests.cli.faulty_module:flow", 2, "ZeroDivisionError"),
            (":flow", 2, "package.module:name"),
        ],
    )
    def test_a_flow_that_is_not_there(self, run, ran, name, code, said):
        ended = run("flow", "start", name)
        assert ended.code == code, ended
        assert said in ended.err

    @pytest.mark.parametrize("options", [("--timeout", "3"), ("--work",), ("--work", "--wait")], ids=" ".join)
    def test_options_that_do_not_go_together(self, run, options):
        ended = run("flow", "start", "words", *options)
        assert ended.code == 2, ended


class TestList:
    def test_runs_by_state(self, run, ran):
        run("flow", "start", "words", "-i", '"x"')
        run("flow", "start", f"{HERE}:broken", "--wait", "--work")
        found = {one["name"]: one for one in run("flow", "list", "--json").documents}
        assert found["words"]["runs"] == {"started": 1, "completed": 1, "failed": 0, "cancelled": 0}
        assert found["words"]["tasks"] == {"queued": 1, "running": 0, "waiting": 0}
        assert (found["words"]["steps"], found["words"]["versions"], found["words"]["paused"]) == (
            4,
            1,
            False,
        )
        assert found["broken"]["runs"]["failed"] == 1
        assert "llm_request_workflow" not in found
        shown = run("flow", "list", COLUMNS="80").out
        assert "words" in shown
        assert max(map(len, shown.splitlines())) <= 80

    def test_nothing_there(self, run):
        ended = run("flow", "list")
        assert (ended.code, ended.out) == (0, "")
        assert "no flows" in ended.err

    def test_the_callers_role_may(self, run, ran, caller_url):
        for words in (("list",), ("show", "words"), ("runs",), ("run", ran["run_id"])):
            ended = run("flow", *words, "--database-url", caller_url)
            assert ended.code == 0, ended


class TestShow:
    def test_what_a_step_is(self, run, ran):
        shown = run("flow", "show", "words", COLUMNS="80").out
        assert max(map(len, shown.splitlines())) <= 80
        for said in ("over split", "5 attempts", 'only if {"split":["loud"]}', "Takes a text apart."):
            assert said in shown
        found = run("flow", "show", "words", "--json").document
        assert [step["slug"] for step in found["steps"]] == ["split", "measure", "shout", "total"]
        assert found["steps"][1]["kind"] == "map"
        assert found["steps"][3]["depends_on"] == ["measure", "shout"]

    def test_of_a_module_it_needs_no_database(self, run, ran):
        nowhere = {"PGNEXUS_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
        ended = run("flow", "show", f"{HERE}:words", "--json", **nowhere)
        stored = run("flow", "show", "words", "--json").document
        own = ("flow_slug", "version", "versions")
        assert {**ended.document, **{name: stored[name] for name in own}} == stored

    def test_mermaid(self, run):
        lines = run("flow", "show", f"{HERE}:words", "--mermaid").out.splitlines()
        assert lines[0] == "flowchart TD"
        assert '    s1[["measure<br/>map"]]' in lines
        assert "    s0 -.-> s2" in lines

    def test_boxes_that_are_too_wide_become_a_tree(self, run):
        boxes = run("flow", "show", f"{HERE}:words", COLUMNS="80").out
        branches = run("flow", "show", f"{HERE}:words", COLUMNS="20").out
        assert "╭" in boxes
        assert "╭" not in branches
        assert "├ measure" in branches

    def test_a_version_beside_another(self, run, ran, monkeypatch):
        changed = type(flows.words)("words")
        changed.step(flows.split.handler)
        monkeypatch.setattr(flows, "words", changed)
        run("flow", "start", f"{HERE}:words", "-i", '"x"')
        shown = run("flow", "show", "words").out
        assert "words__v2" in shown
        assert "version 2 of 2" in shown
        [listed] = run("flow", "list", "--json").documents[-1:]
        assert (listed["name"], listed["newest"], listed["versions"]) == ("words", "words__v2", 2)
        kinds = [step["kind"] for step in run("flow", "run", ran["run_id"], "--json").document["steps"]]
        assert kinds == ["single", "map", "single", "single"], "of its own version"

    def test_a_flow_of_another_client(self, run, database_url):
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("select pgflow.create_flow('bare')")
            assert run("flow", "show", "bare").code == 0
            connection.execute("select pgflow.add_step('bare', 'first')")
            connection.execute("select pgflow.add_step('bare', 'second', array['first'], step_type => 'map')")
        found = run("flow", "show", "bare", "--json").document
        assert [(step["kind"], step["is_map"]) for step in found["steps"]] == [
            ("single", False),
            ("map", True),
        ]
        run_id = run("flow", "start", "bare", "-i", "{}").out.strip()
        assert "after first" in run("flow", "run", run_id).out

    def test_flows_built_at_run_time(self, run, database_url):
        actions = Actions()
        actions.add(abs)
        for text in ("one", "two"):
            steps = [{"slug": "ask", "prompt": f"{text} {{input}}"}]
            asyncio.run(known(database_url, FlowBuilder(actions).build({"name": "digest", "steps": steps})))
        [listed] = run("flow", "list", "--json").documents
        assert (listed["name"], listed["built"], listed["versions"]) == ("digest", True, 2)
        shown = run("flow", "show", "digest", "--json").document
        assert (shown["name"], shown["flow_slug"]) == ("digest", listed["newest"])
        run_id = run("flow", "start", "digest", "-i", '"x"').out.strip()
        assert run("flow", "runs", "--flow", "digest", "--json").document["run_id"] == run_id
        assert run("flow", "pause", "digest").code == 0
        assert f"pgnexus flow resume {listed['newest']}" in run("flow", "run", run_id).out


class TestRuns:
    def test_by_flow_and_state(self, run, ran):
        open_run = run("flow", "start", "words", "-i", '"x"').out.strip()
        found = run("flow", "runs", "--json").documents
        assert [one["run_id"] for one in found] == [open_run, ran["run_id"]]
        [found] = run("flow", "runs", "--flow", "words", "--status", "completed", "--json").documents
        assert found["run_id"] == ran["run_id"]
        assert open_run in run("flow", "runs", COLUMNS="80").out

    @pytest.mark.parametrize(
        ("options", "code", "said"),
        [
            (("--status", "done"), 2, "started, completed, failed, cancelled"),
            (("--since", "yesterday"), 2, "--since"),
            (("--flow", "nothing"), 6, "there is no flow 'nothing'"),
        ],
    )
    def test_what_makes_no_sense(self, run, options, code, said):
        ended = run("flow", "runs", *options)
        assert ended.code == code, ended
        assert said in ended.err


class TestRun:
    def test_a_tree_of_its_steps(self, run, ran):
        ended = run("flow", "run", ran["run_id"], COLUMNS="80")
        assert ended.code == 0
        lines = ended.out.splitlines()
        assert lines[1].startswith("✓ completed")
        [measured] = [line for line in lines if "measure" in line]
        assert measured.startswith("├ ✓ measure")
        assert "4/4" in measured
        assert '"letters": 11' in ended.out
        assert max(map(len, lines)) <= 80

    def test_one_that_failed(self, run):
        run_id = run("flow", "start", f"{HERE}:broken", "--wait", "--work", "--json").document["run_id"]
        ended = run("flow", "run", run_id)
        assert ended.code == 1
        assert "└ ✗ breaks" in ended.out
        assert "the disk is on fire" in ended.out
        assert f"pgnexus flow retry {run_id}" in ended.out

    def test_what_its_models_took(self, run, llmock):
        llmock.reply("forty-two")
        run_id = run("flow", "start", f"{HERE}:asked", "-i", '"why?"', "--wait", "--work", "--json").document[
            "run_id"
        ]
        found = run("flow", "run", run_id, "--json").document
        assert found["output"] == {"answer": "forty-two"}
        [step] = found["steps"]
        assert step["kind"] == "llm"
        assert step["llm"]["requests"] == 1
        assert step["llm"]["tokens"] > 0
        assert f"models: {step['llm']['tokens']:,} tokens" in run("flow", "run", run_id).out

    def test_its_events_in_a_pipe(self, run, ran):
        lines = run("flow", "run", ran["run_id"], "--watch").out.splitlines()
        assert [line.split()[1] for line in (lines[0], lines[-1])] == ["run:started", "run:completed"]
        events = run("flow", "run", ran["run_id"], "--watch", "--json").documents
        told = [(one["event_type"], one["step"]) for one in events]
        assert ("step:completed", "measure") in told
        assert events[-1]["payload"]["output"] == ran["output"]

    def test_the_beginning_of_an_id_is_enough(self, run, ran):
        assert run("flow", "run", ran["run_id"][:13]).code == 0
        run("flow", "start", "words", "-i", '"x"')
        ended = run("flow", "run", ran["run_id"][:8])
        if ended.code != 0:  # both within the minute that eight characters are
            assert ended.code == 2
            assert ran["run_id"] in ended.err

    @pytest.mark.parametrize(
        ("run_id", "code"),
        [("01a2", 2), ("not-an-id-at-all", 2), ("00000000-0000-7000-8000-000000000000", 6), ("ffffffff", 6)],
    )
    def test_one_that_is_not_there(self, run, run_id, code):
        ended = run("flow", "run", run_id, "--json")
        assert ended.code == code
        assert run_id in ended.error["message"]

    def test_following_it_from_another_process(self, run, start, waiting):
        watching = start("flow", "run", waiting, "--watch")
        watching.wait_for("approval")
        run("flow", "signal", waiting, "approval", "-p", "true")
        ended = watching.end()
        assert ended.code == 0
        assert "run:completed" in ended.out

    def test_ctrl_c_ends_only_the_watching(self, run, start, waiting):
        watching = start("flow", "run", waiting, "--watch")
        watching.wait_for("approval")
        watching.send(signal.SIGINT)
        assert watching.end().code == 130
        assert run("flow", "run", waiting).code == 4


class TestControl:
    def test_a_signal(self, run, waiting):
        shown = run("flow", "run", waiting[:20]).out
        assert "waits for a signal" in shown
        ended = run("flow", "signal", waiting, "publish", "--json")
        assert ended.code == 1
        assert ended.error["type"] == "not_waiting"
        assert "approval has not ended" in ended.error["message"]
        assert "approval waits for one" in ended.error["message"]
        ended = run("flow", "signal", waiting, "nothing")
        assert ended.code == 1
        assert "there are draft, approval, publish" in ended.err
        assert run("flow", "signal", waiting, "approval", "-p", "{").code == 2
        assert run("flow", "signal", waiting, "approval", "-p", '{"ok": true}').code == 0
        while (ended := run("flow", "run", waiting, "--json")).code == 4:
            pass
        assert ended.document["output"] == {"publish": ["a draft", {"ok": True}]}
        ended = run("flow", "signal", waiting, "approval")
        assert (ended.code, "none of its steps waits" in ended.err) == (1, True), ended

    def test_nobody_there_to_run_it(self, run, ran):
        ended = run("flow", "run", run("flow", "start", "words", "-i", '"x"').out.strip())
        assert "no worker for flows is alive" in ended.out
        assert "no worker for flows is alive" in run("flow", "list").out

    def test_cancel(self, run, ran):
        open_run = run("flow", "start", "words", "-i", '"x"').out.strip()
        ended = run("flow", "cancel", open_run, "--json")
        assert (ended.code, ended.document) == (0, {"run_id": open_run, "outcome": "cancelled"})
        assert run("flow", "run", open_run).code == 5
        ended = run("flow", "cancel", open_run, ran["run_id"], "--json")
        assert ended.code == 1
        assert {one["outcome"] for one in ended.documents} == {"ended before"}
        assert run("flow", "cancel", "ffffffff", open_run).code == 6

    def test_retry(self, run, ran):
        run_id = run("flow", "start", f"{HERE}:broken", "--wait", "--work", "--json").document["run_id"]
        assert run("flow", "retry", run_id).code == 0
        found = run("flow", "run", run_id, "--json").document
        assert [step["status"] for step in found["steps"]] == ["completed", "started"]
        ended = run("flow", "retry", ran["run_id"])
        assert ended.code == 1
        assert "completed" in ended.out

    def test_pause_and_resume(self, run, ran):
        assert run("flow", "pause", "words").code == 0
        assert "paused" in run("flow", "list").out
        assert "paused" in run("flow", "show", "words").out
        open_run = run("flow", "start", "words", "-i", '"x"').out.strip()
        assert "the flow is paused" in run("flow", "run", open_run).out
        assert run("flow", "resume", "words", "--json").document == {"flow": "words", "outcome": "resumed"}
        assert "paused" not in run("flow", "list").out
        ended = run("flow", "pause", "nothing")
        assert (ended.code, "there are" in ended.err) == (6, True), ended


class TestSchedule:
    def test_put_list_pause_resume_remove(self, run, ran):
        ended = run(
            "flow", "schedule", "put", "nightly", "words", "0 3 * * *", "-z", "Europe/Berlin", "-i", '"{scheduled_at}"'
        )  # fmt: skip
        assert ended.code == 0, ended
        assert "nightly  fires next on" in ended.out
        [found] = run("flow", "schedule", "list", "--json").documents
        assert (found["flow"], found["cron"], found["input"]) == ("words", "0 3 * * *", "{scheduled_at}")
        assert "03:00 CE" in run("flow", "schedule", "list", COLUMNS="80").out
        for verb, outcome in (("pause", "paused"), ("resume", "resumed"), ("remove", "removed")):
            assert run("flow", "schedule", verb, "nightly", "--json").document["outcome"] == outcome
        ended = run("flow", "schedule", "remove", "nightly", "--json")
        assert (ended.code, ended.error["type"]) == (6, "unknown_schedule")

    def test_of_a_flow_that_is_not_there_yet(self, run):
        ended = run("flow", "schedule", "put", "early", "nothing", "* * * * *", "--paused")
        assert (ended.code, "no flow nothing yet" in ended.err) == (0, True), ended
        assert "early  paused" in ended.out

    def test_preview(self, run):
        ended = run("flow", "schedule", "preview", "30 6 * * 1", "-n", "2")
        assert [line[:3] + line[14:20] for line in ended.out.splitlines()] == ["Mon 06:30"] * 2, ended

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("preview", "99 * * * *"), "cron"),
            (("preview", "* * * * *", "-z", "Mars/Base"), "Mars/Base"),
            (("put", "x", "y", "* * * * *", "--catch-up", "maybe"), "skip, once, all"),
            (("put", "x", "not a slug", "* * * * *"), "flow"),
            (("put", "x", "y", "* * * * *", "-i", "{"), "--input"),
        ],
    )
    def test_what_makes_no_sense(self, run, words, said):
        ended = run("flow", "schedule", *words)
        assert ended.code == 2, ended
        assert said in ended.err


class TestUp:
    def test_flows_of_the_settings_and_of_the_command(self, run, start):
        up = start(
            "up", "--only", "flows", "--flow", f"{HERE}:words", "--json", PGNEXUS_FLOWS=f'["{HERE}:each"]'
        )  # fmt: skip
        ready = json.loads(up.wait_for("ready"))
        assert (ready["runs"], ready["flows"]) == (["flows"], ["each", "words"])
        ended = run("flow", "start", "each", "-i", "[4]", "--wait")
        assert json.loads(ended.out) == {"double": [8]}
        up.send(signal.SIGTERM)
        assert up.end().code == 0

    def test_no_other_verb_runs_the_flows_of_the_settings(self, run):
        assert run("flow", "list", PGNEXUS_FLOWS='["no.such.module:flow"]').code == 0

    @pytest.mark.parametrize(
        "options", [("--flow", "no.such.module:flow"), ("--only", "flows"), ("--only", "flow")], ids=" ".join
    )
    def test_flows_that_are_not_there(self, run, options):
        assert run("up", *options).code == 2
