"""`batch`: every line answered once, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from decimal import Decimal

import pytest

from pgnexus.cli.batch_files import InputFile, OutputFile
from pgnexus.cli.batch_run import Tally
from pgnexus.errors import InvalidRequest


@pytest.fixture
def files(tmp_path):
    """IN and OUT."""
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(llmock):
    """How often the provider was asked what."""
    return Counter(record.body["messages"][-1]["content"] for record in llmock.requests)


def wait_for_lines(running, path, count):
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert running.process.poll() is None, running.lines


class TestLines:
    def test_every_line_is_answered_and_bad_ones_say_why(self, run, llmock, files):
        source, target = files
        write(
            source,
            {"prompt": "one", "id": "first"},
            "",
            {"messages": [{"role": "user", "content": "two"}], "model": "gpt-4o", "max_tokens": 9},
            "not json",
            "[1]",
            {"prompt": "three", "colour": "red"},
            {"messages": []},
            {"prompt": "four", "messages": []},
            "[" * 20_000,
            {"prompt": "five", "id": 7},
            {"prompt": 6},
            {"prompt": "seven", "self": "me"},
            {"prompt": "eight", "connection": "mine"},
        )
        ended = run("batch", source, "-o", target, "--agent-id", "b", "--system", "Be short.", "--json")
        assert ended.code == 1, ended
        out = {line["line"]: line for line in read(target)}
        assert sorted(out) == [1, *range(3, 14)]
        good = {number for number, line in out.items() if line["status"] == "success"}
        assert good == {1, 3, 10}
        assert (out[1]["id"], out[3]["id"], out[10]["id"]) == ("first", "3", "7")
        assert out[1]["response"]
        assert out[1]["usage"]["total_tokens"] > 0
        assert out[3]["model"].startswith("gpt-4o")
        for number, word in {
            4: "JSON",
            5: "object",
            6: "colour",
            7: "messages",
            8: "not both",
            9: "JSON",
            11: "prompt is no text",
            12: "no option 'self'",
            13: "no option 'connection'",
        }.items():
            assert out[number]["error"]["type"] == "invalid_request"
            assert word in out[number]["error"]["message"]
            assert out[number]["request_id"] is None
        assert (ended.document["done"], ended.document["failed"], ended.document["lines"]) == (12, 9, 12)
        rows = run("requests", "--agent-id", "b", "--json").documents
        assert {row["request_id"] for row in rows} == {out[number]["request_id"] for number in good}
        assert {row["priority"] for row in rows} == {"batch"}
        assert all(record.body["messages"][0]["content"] == "Be short." for record in llmock.requests)

    def test_a_cost_that_is_not_known_is_not_nothing(self, run, files):
        source, target = files
        write(source, {"prompt": "one"})
        ended = run("batch", source, "-o", target)
        assert "cost unknown" in ended.err
        assert "$" not in ended.err
        found = run("batch", source, "-o", target.with_name("other"), "--json").document
        assert (found["cost"], found["known_cost"], found["unknown_costs"]) == (None, "0", 1)

    def test_costs_of_which_some_are_known_are_a_lower_bound(self):
        tally = Tally()
        for cost in (None, "0.25", "0.5"):
            tally.count({"status": "success", "usage": None, "cost": cost})
        assert tally.cost is None
        assert (tally.known_cost, tally.unknown_costs) == (Decimal("0.75"), 1)

    def test_run_again_it_asks_nothing_and_writes_nothing(self, run, llmock, files):
        source, target = files
        write(source, *({"prompt": f"question {n}"} for n in range(20)))
        assert run("batch", source, "-o", target).code == 0
        before = target.read_bytes()
        ended = run("batch", source, "-o", target, "--json")
        assert ended.code == 0
        assert (ended.document["done"], ended.document["skipped"]) == (0, 20)
        assert target.read_bytes() == before
        assert len(llmock.requests) == 20

    def test_without_its_output_it_finds_the_same_requests(self, run, llmock, files):
        source, target = files
        write(source, *({"prompt": f"question {n}"} for n in range(20)))
        run("batch", source, "-o", target)
        before = {line["request_id"] for line in read(target)}
        target.unlink()
        assert run("batch", source, "-o", target).code == 0
        assert {line["request_id"] for line in read(target)} == before
        assert run("batch", source, "-o", target.with_name("other"), "--name", "another").code == 0
        assert len(llmock.requests) == 40

    def test_alike_lines_are_two_requests_and_new_lines_are_asked(self, run, llmock, files):
        source, target = files
        write(source, {"prompt": "same"}, {"prompt": "same"})
        run("batch", source, "-o", target)
        write(source, {"prompt": "same"}, {"prompt": "same"}, {"prompt": "new"})
        run("batch", source, "-o", target)
        assert prompts(llmock) == {"same": 2, "new": 1}
        assert [line["line"] for line in read(target)][-1] == 3

    @pytest.mark.parametrize("options", [["--name", "another"], ["-m", "gpt-4o"], ["--system", "Be short."]])
    def test_other_options_ask_anew_into_the_same_output(self, run, llmock, files, options):
        source, target = files
        write(source, {"prompt": "one"}, "no json")
        for given in ([], options):
            run("batch", source, "-o", target, *given)
            again = run(
                "batch", source, "-o", target, *given, "--timeout", "99", "--agent-id", "me", "--json"
            )
            assert (again.document["done"], again.document["skipped"]) == (0, 2)
        assert [line["line"] for line in sorted(read(target), key=lambda line: line["line"])] == [1, 1, 2, 2]
        assert len(llmock.requests) == 2

    def test_options_that_a_line_has_itself_ask_nothing_anew(self, run, llmock, files):
        source, target = files
        write(source, {"prompt": "one", "model": "gpt-4o"}, {"prompt": "two"})
        run("batch", source, "-o", target, "-m", "gpt-4")
        assert run("batch", source, "-o", target, "-m", "gpt-4-turbo", "--json").document["skipped"] == 1
        assert prompts(llmock) == {"one": 1, "two": 2}

    def test_an_output_that_cannot_be_written_stops_it_at_once(self, run, env, llmock, files):
        source, target = files
        write(source, *({"prompt": f"question {n}"} for n in range(200)))
        command = f"ulimit -f 4; exec {sys.executable} -m pgnexus batch {source} -o {target} --window 4"
        ended = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == 1, ended.stderr
        assert f"{target} cannot be written: File too large" in " ".join(ended.stderr.split())
        assert len(llmock.requests) < 100
        assert run("batch", source, "-o", target).code == 0
        assert sorted(line["line"] for line in read(target)) == list(range(1, 201))
        assert prompts(llmock) == {f"question {n}": 1 for n in range(200)}

    def test_failed_lines_are_asked_again_on_request(self, run, llmock, files):
        source, target = files
        write(source, {"prompt": "hello"})
        llmock.fail(400)
        assert run("batch", source, "-o", target).code == 1
        again = run("batch", source, "-o", target, "--json")
        assert (again.code, again.document["failed_before"]) == (1, 1)
        assert len(llmock.requests) == 1
        assert run("batch", source, "-o", target, "--retry-failed").code == 0
        assert [line["status"] for line in read(target)] == ["failed", "success"]
        assert run("batch", source, "-o", target, "--retry-failed").code == 0
        assert len(llmock.requests) == 2

    def test_a_half_written_last_line_is_repaired(self, run, llmock, files):
        source, target = files
        write(source, *({"prompt": f"question {n}"} for n in range(5)))
        run("batch", source, "-o", target)
        whole = target.read_bytes()
        for cut in (1, 30, len(whole.splitlines()[-1]) - 1):
            target.write_bytes(whole[:-cut])
            assert run("batch", source, "-o", target).code == 0
            assert sorted(line["line"] for line in read(target)) == [1, 2, 3, 4, 5]
        assert len(llmock.requests) == 5

    @pytest.mark.parametrize("content", [b"my diary\n", b'{"a": 1}\n', b"\x00\x01", b'{"line": 1}\n', b"{"])
    def test_a_file_that_is_not_ours_stays_as_it_is(self, run, files, content):
        source, target = files
        write(source, {"prompt": "hello"})
        target.write_bytes(content)
        if content == b"{":  # may be the beginning of a line of ours
            return
        ended = run("batch", source, "-o", target)
        assert ended.code == 2, ended
        assert target.read_bytes() == content

    def test_a_file_that_is_not_there(self, run, files):
        source, target = files
        ended = run("batch", source, "-o", target)
        assert ended.code == 2
        assert "in.jsonl" in ended.err
        assert not target.exists()

    def test_a_pipe_could_not_be_read_again(self, run, files):
        source, target = files
        os.mkfifo(source)
        ended = run("batch", source, "-o", target)
        assert ended.code == 2
        assert "a pipe can be read only once" in ended.err

    def test_one_writer_at_a_time(self, files):
        _, target = files
        first, second = OutputFile(target), OutputFile(target)
        first.open()
        with pytest.raises(InvalidRequest, match="another batch"):
            second.open()
        first.close()
        second.close()

    def test_a_million_lines_need_little_memory(self, files):
        source, target = files
        write(source, *({"prompt": f"{n}"} for n in range(3)))
        out = OutputFile(target)
        out.open()
        for line in InputFile(source):
            out.done.note(1_000_000 + line.number, line.hash, ok=True)
        assert out.done.size_in_bytes < 10_000_000
        out.close()


class TestInterrupted:
    COUNT = 300

    @pytest.fixture
    def source(self, files):
        write(files[0], *({"prompt": f"question {n}"} for n in range(self.COUNT)))
        return files[0]

    def test_killed_half_way_the_provider_sees_no_request_twice(self, run, start, llmock, source, files):
        """The nexus lives on in a process of its own."""
        up = start("up", PGNEXUS_CONCURRENCY="8")
        up.wait_for("ready")
        llmock.delay(0.05, times=None)
        batch = start("batch", source, "-o", files[1], "--window", "50")
        wait_for_lines(batch, files[1], 20)
        batch.send(signal.SIGKILL)
        batch.process.wait()
        assert len(files[1].read_bytes().splitlines()) < self.COUNT
        assert run("batch", source, "-o", files[1], "--window", "50").code == 0
        assert sorted(line["line"] for line in read(files[1])) == list(range(1, self.COUNT + 1))
        assert prompts(llmock) == {f"question {n}": 1 for n in range(self.COUNT)}

    @pytest.mark.soak
    def test_killed_with_its_own_nexus_every_line_is_answered_once(self, run, start, llmock, source, files):
        """Calls that died with the process are made again: a provider call is at least once."""
        llmock.delay(0.05, times=None)
        batch = start("batch", source, "-o", files[1], PGNEXUS_CONCURRENCY="8")
        wait_for_lines(batch, files[1], 20)
        batch.send(signal.SIGKILL)
        batch.process.wait()
        answered = {line["line"] for line in read_whole(files[1])}
        assert run("batch", source, "-o", files[1]).code == 0
        assert sorted(line["line"] for line in read(files[1])) == list(range(1, self.COUNT + 1))
        asked = prompts(llmock)
        assert sum(asked.values()) <= self.COUNT + 8
        assert all(asked[f"question {number - 1}"] == 1 for number in answered)

    def test_ctrl_c_drains_and_the_next_run_goes_on(self, run, start, llmock, source, files):
        llmock.delay(0.05, times=None)
        batch = start("batch", source, "-o", files[1], "--window", "8", "--json")
        wait_for_lines(batch, files[1], 20)
        batch.send(signal.SIGINT)
        ended = batch.end()
        assert ended.code == 130, ended
        assert ended.document["interrupted"] is True
        assert run("batch", source, "-o", files[1]).code == 0
        assert sorted(line["line"] for line in read(files[1])) == list(range(1, self.COUNT + 1))
        assert prompts(llmock) == {f"question {n}": 1 for n in range(self.COUNT)}

    @pytest.mark.soak
    def test_ctrl_c_promises_nothing_about_calls_of_another_process(self, run, start, llmock, source, files):
        start("up", PGNEXUS_CONCURRENCY="8").wait_for("ready")
        llmock.delay(0.05, times=None)
        batch = start("batch", source, "-o", files[1], "--window", "8")
        wait_for_lines(batch, files[1], 20)
        batch.send(signal.SIGINT)
        ended = batch.end()
        assert ended.code == 130, ended
        assert "goes on in the nexus that is alive" in ended.out
        assert "gives them back" not in ended.out


def read_whole(path):
    """The lines that were written to their end."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
