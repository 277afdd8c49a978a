"""`ask`, and what can be done with a request afterwards."""

import signal
import uuid

import pytest


class TestAsk:
    def test_the_answer_goes_to_stdout_and_the_line_about_it_to_stderr(self, run, llmock):
        llmock.reply("Paris [bold]is[/bold] it.")
        ended = run("ask", "What is the capital of France?")
        assert ended.code == 0, ended
        assert ended.out == "Paris [bold]is[/bold] it.\n"
        assert "mock/" in ended.err
        assert "tokens" in ended.err
        [asked] = llmock.requests
        assert asked.body["messages"] == [{"role": "user", "content": "What is the capital of France?"}]

    def test_from_stdin(self, run, llmock):
        for arguments in (["ask"], ["ask", "-"]):
            assert run(*arguments, stdin="a question").code == 0
        assert {record.body["messages"][0]["content"] for record in llmock.requests} == {"a question"}

    def test_json_is_the_result(self, run, llmock):
        llmock.reply("Yes.")
        found = run("ask", "--json", "Really?").document
        assert found["status"] == "success"
        assert found["response"] == "Yes."
        assert uuid.UUID(found["request_id"]).version == 7

    def test_options_reach_the_provider_and_the_row(self, run, llmock):
        ended = run(
            *(
                "ask",
                "hello",
                "--json",
                "-s",
                "Be short.",
                "-m",
                "gpt-4o",
                "--max-tokens",
                "7",
                "--seed",
                "3",
            ),
            *("--temperature", "0.5", "--top-p", "0.9", "--stop", "a", "--stop", "b", "--agent-id", "me"),
            *("--task-type", "coder", "--priority", "batch"),
        )
        assert ended.code == 0, ended
        [record] = llmock.requests
        assert record.body["messages"][0] == {"role": "system", "content": "Be short."}
        assert record.model == "gpt-4o"
        said = {name: record.body[name] for name in ("max_tokens", "seed", "temperature", "top_p", "stop")}
        assert said == {"max_tokens": 7, "seed": 3, "temperature": 0.5, "top_p": 0.9, "stop": ["a", "b"]}
        [row] = run("requests", "--json", "--agent-id", "me").documents
        assert (row["task_type"], row["priority"], row["model"]) == ("coder", "batch", "gpt-4o")

    def test_a_request_that_fails_is_exit_code_1_and_one_line(self, run, llmock):
        llmock.fail(400, message="no such thing")
        ended = run("ask", "hello")
        assert ended.code == 1
        assert ended.out == ""
        assert ended.err.startswith("error: request ")
        assert len(ended.err.splitlines()) == 1
        assert "Traceback" not in ended.err

    def test_as_json_it_is_the_result_and_the_error(self, run, llmock):
        llmock.fail(400, message="no such thing")
        ended = run("--json", "ask", "hello")
        assert ended.code == 1
        assert ended.document["status"] == "failed"
        assert ended.error["type"] == "failed"
        assert ended.error["request_id"] == ended.document["request_id"]

    def test_verbose_shows_the_traceback(self, run, llmock):
        llmock.fail(400)
        assert "Traceback" in run("ask", "hello", "--verbose").err

    def test_a_deadline_that_passes_is_exit_code_4(self, run, llmock):
        llmock.delay(20)
        assert run("ask", "hello", "--timeout", "0.3", PGNEXUS_DRAIN_TIMEOUT="0").code == 4

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["ask", "hello", "--priority", "high"], "priority"),
            (["ask", "hello", "--timeout", "-1"], "timeout"),
            (["ask", "hello", "--max-tokens", "no"], "max-tokens"),
            (["ask", "hello", "--no-such-option"], "--no-such-option"),
            (["ask", "hello", "-c", "hard"], "complexity"),
            (["aks"], "ask"),
            (["up", "--only", "both"], "both"),
            (["requests", "--status", "lost"], "lost"),
            (["requests", "--since", "yesterday"], "yesterday"),
            (["result", "x"], "x"),
            (["ask", "hello", "--data-dir", "/tmp"], "--data-dir"),
        ],
    )
    def test_wrong_usage_is_exit_code_2(self, run, llmock, arguments, word):
        for given in (arguments, ["--json", *arguments]):
            ended = run(*given)
            assert ended.code == 2, ended
            assert word in ended.err
        assert word in ended.error["message"]
        assert llmock.requests == []

    def test_a_database_that_is_not_there_is_exit_code_3_without_its_password(self, run):
        ended = run("ask", "hello", "--database-url", "postgresql://me:secret@127.0.0.1:1/x")
        assert ended.code == 3
        assert "127.0.0.1" in ended.err
        assert "secret" not in ended.err

    def test_a_database_without_the_schema_is_exit_code_3_and_says_what_to_run(self, run, empty_database_url):
        ended = run("ask", "hello", "--json", "--database-url", empty_database_url)
        assert ended.code == 3
        assert "pgnexus migrate" in ended.error["message"]

    def test_ctrl_c_ends_the_wait_and_not_the_request(self, run, start, llmock):
        up = start("up")
        up.wait_for("ready")
        llmock.delay(2)
        asking = start("ask", "hello", "--agent-id", "patient")
        wait_until_asked(run)
        asking.send(signal.SIGINT)
        assert asking.end().code == 130
        told = asking.wait_for("pgnexus result").split()
        ended = run(*told[1:], "--json")
        assert ended.document["status"] == "success"
        assert len(llmock.requests) == 1

    def test_a_nexus_that_dies_is_replaced_by_one_of_our_own(self, run, start):
        up = start("up")
        up.wait_for("ready")
        up.send(signal.SIGKILL)
        up.process.wait()
        assert run("ask", "hello").code == 0


def wait_until_asked(run):
    while not run("requests", "--agent-id", "patient", "--json").documents:
        pass


class TestStream:
    def test_the_answer_comes_in_pieces(self, run, llmock):
        llmock.reply("Paris [bold]is[/bold] it.")
        ended = run("ask", "--stream", "What is the capital of France?")
        assert ended.code == 0, ended
        assert ended.out == "Paris [bold]is[/bold] it.\n"
        assert "tokens" in ended.err
        [asked] = llmock.requests
        assert asked.body["stream"] is True

    def test_one_that_breaks_off_begins_anew(self, run, llmock):
        llmock.reply("One two three four five six.", times=2)
        llmock.pace(200)
        llmock.disconnect(after_chunks=3)
        ended = run("ask", "--stream", "Count.")
        assert ended.code == 0, ended
        broken, whole, end = ended.out.split("\n")
        assert (whole, end) == ("One two three four five six.", "")
        assert whole.startswith(broken)
        assert len(broken) < len(whole)
        assert "begins anew" in ended.err

    def test_as_json_each_chunk_is_a_document(self, run, llmock):
        llmock.reply("Yes, really.")
        *chunks, result = run("ask", "--json", "--stream", "Really?").documents
        assert "".join(chunk["text"] for chunk in chunks) == result["response"] == "Yes, really."
        assert {chunk["request_id"] for chunk in chunks} == {result["request_id"]}

    def test_ctrl_c_ends_the_reading_and_not_the_request(self, run, start, llmock):
        up = start("up")
        up.wait_for("ready")
        llmock.reply("One two three four five six.").pace(500)
        asking = start("ask", "--stream", "hello", "--agent-id", "patient")
        wait_until_asked(run)
        asking.send(signal.SIGINT)
        assert asking.end().code == 130
        told = asking.wait_for("pgnexus result").split()
        ended = run(*told[told.index("result") :], "--json")
        assert ended.document["response"] == "One two three four five six."
        assert len(llmock.requests) == 1

    def test_a_failure_is_the_same_as_without(self, run, llmock):
        llmock.fail(400, message="no such thing")
        ended = run("ask", "--stream", "hello")
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: request ")


class TestLater:
    def test_no_wait_then_result(self, run, llmock):
        request_id = run("ask", "hello", "--no-wait").out.strip()
        pending = run("result", request_id)
        assert pending.code == 4
        assert "enqueued" in pending.err
        llmock.reply("Here I am.")
        assert run("result", request_id, "--wait").out == "Here I am.\n"
        assert run("result", request_id).out == "Here I am.\n"
        assert len(llmock.requests) == 1

    def test_a_wait_that_is_over_is_exit_code_4(self, run, llmock):
        request_id = run("ask", "hello", "--no-wait", "--delay", "60").out.strip()
        ended = run("result", request_id, "--wait", "--timeout", "0.1", "--json")
        assert ended.code == 4
        assert ended.error["type"] == "pending"

    def test_cancel_says_what_became_of_each(self, run):
        request_id = run("ask", "hello", "--no-wait").out.strip()
        assert run("cancel", request_id, "--json").document == {
            "request_id": request_id,
            "outcome": "cancelled",
        }
        assert run("result", request_id).code == 5
        assert run("cancel", request_id).code == 1
        unknown = str(uuid.uuid4())
        ended = run("cancel", request_id, unknown, "--json")
        assert ended.code == 6
        assert [one["outcome"] for one in ended.documents] == ["ended before", "unknown"]

    def test_an_unknown_request_is_exit_code_6(self, run):
        ended = run("result", str(uuid.uuid4()), "--json")
        assert ended.code == 6
        assert ended.error["type"] == "unknown_request"
        assert run("retry", str(uuid.uuid4())).code == 6

    def test_retry_is_a_new_request(self, run, llmock):
        llmock.fail(400)
        first = run("ask", "hello", "--json").document["request_id"]
        llmock.reply("Now it works.")
        again = run("retry", first, "--wait", "--json").document
        assert again["response"] == "Now it works."
        assert again["request_id"] != first
        [row] = run("requests", "--json", "--status", "success").documents
        assert row["retry_of"] == first

    def test_requests_are_listed_the_newest_first(self, run):
        ids = [
            run("ask", "hello", "--no-wait", "--task-type", kind).out.strip()
            for kind in ("coder", "qa", "coder")
        ]
        assert [row["request_id"] for row in run("requests", "--json").documents] == ids[::-1]
        coders = run("requests", "--json", "--task-type", "coder", "-n", "1", "--since", "2h").documents
        assert [row["request_id"] for row in coders] == ids[2:]
        assert run("requests", "--json", "--since", "2999-01-01").documents == []
        table = run("requests").out
        assert all(request_id in table for request_id in ids)
