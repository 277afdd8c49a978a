"""`up`: ready when it says so, and gone without losing anything."""

import json
import signal
import socket
import urllib.request

import pytest


def ids(run, count):
    return [run("ask", f"question {n}", "--no-wait").out.strip() for n in range(count)]


def wait_until_in_flight(run, count):
    while run("queues", "--json").document["in_flight"] < count:
        pass


class TestUp:
    def test_it_says_what_it_runs(self, start):
        up = start("up", "--json")
        ready = json.loads(up.wait_for("ready"))
        assert ready["runs"] == ["nexus", "poller"]
        assert ready["pid"] == up.process.pid
        assert ready["providers"] == ["mock"]
        assert ready["instance_id"]
        up.send(signal.SIGTERM)
        ended = up.end()
        assert ended.code == 0
        assert [document["event"] for document in ended.documents] == ["ready", "draining", "stopped"]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_lets_calls_in_flight_finish(self, run, start, llmock, number):
        up = start("up")
        up.wait_for("ready")
        llmock.delay(3, times=None)
        asked = ids(run, 3)
        wait_until_in_flight(run, 3)
        up.send(number)
        assert up.end().code == 0
        llmock.reset()
        for request_id in asked:
            assert run("result", request_id, "--wait", "--json").document["attempts"] == 1
        assert llmock.requests == []

    def test_past_drain_timeout_it_gives_back(self, run, start, llmock):
        up = start("up", PGNEXUS_DRAIN_TIMEOUT="0.2")
        up.wait_for("ready")
        llmock.delay(8, times=None)
        asked = ids(run, 2)
        wait_until_in_flight(run, 2)
        up.send(signal.SIGTERM)
        assert up.end().code == 0
        assert run("queues", "--json").document["in_flight"] == 0
        llmock.reset()
        assert [run("result", request_id, "--wait").code for request_id in asked] == [0, 0]

    def test_a_second_ctrl_c_gives_back_at_once(self, run, start, llmock):
        up = start("up", PGNEXUS_DRAIN_TIMEOUT="600")
        up.wait_for("ready")
        llmock.delay(8, times=None)
        [asked] = ids(run, 1)
        wait_until_in_flight(run, 1)
        up.send(signal.SIGINT)
        up.wait_for("may finish")
        up.send(signal.SIGINT)
        assert up.end().code == 0
        assert run("queues", "--json").document["in_flight"] == 0
        assert run("result", asked).code == 4

    def test_a_third_ends_it_as_it_is(self, run, start, llmock):
        up = start("up", PGNEXUS_DRAIN_TIMEOUT="600")
        up.wait_for("ready")
        llmock.delay(8, times=None)
        ids(run, 1)
        wait_until_in_flight(run, 1)
        up.send(signal.SIGSTOP)  # so that both others find it before it has acted on the first
        for number in (signal.SIGINT, signal.SIGTERM):
            up.send(number)
        up.send(signal.SIGCONT)
        up.wait_for("stopping")
        up.send(signal.SIGINT)
        assert up.end().code in (0, 130)

    def test_it_serves_metrics(self, run, start):
        up = start("up", "--json", "--metrics-port", "0")
        ready = json.loads(up.wait_for("ready"))
        assert run("ask", "hello", "--no-wait").code == 0

        def scraped():
            with urllib.request.urlopen(ready["metrics"], timeout=10) as response:
                return response.read().decode()

        while 'pgnexus_requests_settled_total{status="success"} 1.0' not in (text := scraped()):
            pass
        assert "pgnexus_database_up 1.0" in text
        assert "pgnexus_instances 1.0" in text
        up.send(signal.SIGTERM)
        assert up.end().code == 0

    def test_a_metrics_port_that_is_taken(self, start):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            up = start("up", "--metrics-port", str(taken.getsockname()[1]))
            up.wait_for("metrics_port: cannot listen")
            assert up.end().code == 2

    def test_the_two_sides_in_processes_of_their_own(self, start, run, caller_url, nexus_url):
        nexus = start("up", "--only", "nexus", "--json", "--database-url", nexus_url)
        poller = start("up", "--only", "poller", "--json", "--database-url", caller_url)
        assert json.loads(nexus.wait_for("ready"))["runs"] == ["nexus"]
        assert json.loads(poller.wait_for("ready"))["runs"] == ["poller"]
        assert run("ask", "hello", "--database-url", caller_url).code == 0
        for one in (nexus, poller):
            one.send(signal.SIGTERM)
            assert one.end().code == 0
