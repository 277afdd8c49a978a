"""`top`: what happens now, in a terminal of any size, for scripts, and through an outage."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest
from rich.console import Console

from pgnexus.cli.top.frame import frame
from pgnexus.cli.top.watcher import Seen
from pgnexus.watch.view import BreakerNow, CallsNow, LimitNow, ParkedNow, QueueNow, Spent, View
from tests.cli.conftest import COMMAND

_DAY = datetime(2030, 1, 31, tzinfo=UTC)
LANES = ("ai_requests", "ai_requests_batch", "ai_requests_interactive", "ai_results")


def a_view(models: int = 3, **over) -> View:
    """A busy moment."""
    calls = tuple(
        CallsNow(f"vendor{n}", f"model-{n}", 100, {"rate_limited": 2}, 12_345, Decimal("0.5"), 1200, 4000, n)
        for n in range(models)
    )
    fields = {
        "at": _DAY,
        "window": 60.0,
        "queues": tuple(QueueNow(name, 10 * n, n, 5.0 if n else None) for n, name in enumerate(LANES)),
        "parked": (ParkedNow("openai", 37, 42.0), ParkedNow("agent:crawler", 5, 1.0)),
        "total": CallsNow("", "", 300, {"rate_limited": 6}, 37_035, Decimal("1.5"), 1200, 4000),
        "calls": calls,
        "breakers": (
            BreakerNow("mistral", "large", "failures", 12.0, 1),
            BreakerNow("groq", "x", "failures", 0, 1),
        ),
        "limits": (LimitNow("agent:crawler", "usd_per_day", Decimal(10), 0.92),),
        "in_flight": 3,
        "waiting_for_retry": 1,
        "instances": 2,
    }
    return View(**{**fields, **over})


def drawn(seen: Seen, width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(frame(seen, width, height))
    return [line.rstrip() for line in captured.get().splitlines()]


SPENT = (Spent(Decimal("4.5"), 10, 0, _DAY), Spent(Decimal("78.9"), 10, 3, _DAY))


class TestFrame:
    def test_it_shows_everything(self):
        text = "\n".join(drawn(Seen(a_view(), SPENT), 160))
        for words in (
            "2 nexus · 3 in flight · 42 parked · 1 to retry",
            "5.0 calls/s · 2.0% failed · p50 1.2 s, p95 4.0 s · 37.0k tokens/min · $90.00/h",
            "$4.50 today · $78.90 this month · 3 calls of unknown price",
            "vendor2/model-2",
            "parked  openai 37 · agent:crawler 5",
            "failed  vendor0 rate_limited 2 · vendor1 rate_limited 2",
            "open    mistral/large for 12.0 s · groq/x to be probed",
            "limits  agent:crawler usd/day 92%",
        ):
            assert words in text

    @pytest.mark.parametrize(
        ("width", "height"), [(80, 24), (80, 10), (100, 30), (160, 50), (200, 24), (40, 24)]
    )
    @pytest.mark.parametrize("models", [0, 3, 80])
    def test_it_fits(self, width, height, models):
        lines = drawn(Seen(a_view(models), SPENT), width, height)
        assert max(map(len, lines)) <= width
        assert len(lines) <= max(height, 20)
        assert "pgnexus top 00:00:00" in lines[0]

    def test_on_80_columns_no_number_is_cut(self):
        lines = drawn(Seen(a_view(80), SPENT), 80, 24)
        table = next(n for n, line in enumerate(lines) if line.startswith("model"))
        assert lines[table].split() == ["model", "now", "calls", "failed", "p50", "p95", "tokens", "cost"]
        assert lines[table + 1].split()[-9:] == [
            "79", "100", "2.0%", "1.2", "s", "4.0", "s", "12.3k", "$0.50"
        ]  # fmt: skip
        assert any(line.startswith("… 7") for line in lines)

    def test_an_idle_system(self):
        idle = a_view(
            0,
            total=CallsNow("", "", 0, {}, 0, None, None, None),
            parked=(),
            breakers=(),
            limits=(),
            instances=0,
        )
        text = "\n".join(drawn(Seen(idle, None), 80, 24))
        assert "no nexus alive" in text
        assert "0.0 calls/s" in text

    def test_an_outage_is_told_above_what_was_seen_last(self):
        lines = drawn(Seen(a_view(), SPENT, "connection refused"), 80, 24)
        assert lines[0] == "the database does not answer; looking again: connection refused"
        assert "pgnexus top" in lines[1]
        assert drawn(Seen(None, None, "connection refused"), 80, 24) == lines[:1]


def execute(url: str, text: str, *params: object) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(text, params)


def book(url: str, *calls: tuple[object, ...]) -> None:
    """Calls into the books: (request_id, instance_id, outcome, seconds since it began, its milliseconds)."""
    for call in calls:
        execute(
            url,
            """insert into nexus.attempts (
                 request_id, attempt, call, instance_id, provider, model, outcome, started_at, duration_ms,
                 prompt_tokens, completion_tokens, cost)
               values (%s, 1, 1, %s, 'openai', 'gpt-4o', %s, clock_timestamp() - make_interval(secs => %s), %s,
                       10, 5, 0.25)""",
            *call,
        )


class TestOnce:
    def test_json(self, run, database_url):
        for age in (2, 100):
            book(
                database_url,
                *(
                    (uuid4(), uuid4(), outcome, age, 1000)
                    for outcome in ("success", "success", "rate_limited")
                ),
            )
        seen = run("top", "--json").document
        [calls] = seen["calls"]
        assert (calls["provider"], calls["model"]) == ("openai", "gpt-4o")
        assert (calls["calls"], calls["failures"], calls["tokens"]) == (3, {"rate_limited": 1}, 45)
        assert seen["total"]["calls"] == 3
        spent = {name: Decimal(one["cost"]) for name, one in seen["spent"].items()}
        assert spent["today"] <= spent["month"] <= Decimal("1.5")
        assert run("top", "--json", "--window", "300").document["total"]["calls"] == 6

    def test_a_long_call_counts_when_it_ends(self, run, database_url):
        book(database_url, (uuid4(), uuid4(), "success", 240, 230_000))
        assert run("top", "--json").document["total"]["calls"] == 1

    def test_calls_in_flight_are_those_that_are_not_booked(self, run, database_url):
        worker, booked, flying = uuid4(), uuid4(), uuid4()
        execute(
            database_url,
            """insert into nexus.reservations (instance_id, number, calls) values (%s, 1, json_build_array(
                 json_build_array(%s::text, 1, 1, now(), 'openai', 'gpt-4o', 1, 1, null, null),
                 json_build_array(%s::text, 1, 1, now(), 'openai', 'gpt-4o', 1, 1, null, null)))""",
            *(worker, booked, flying),
        )
        book(database_url, (booked, worker, "success", 3600, 1))
        [calls] = run("top", "--json").document["calls"]
        assert calls["in_flight"] == 1
        assert "openai/gpt-4o" in run("top", "--once").out

    def test_limits_that_are_used(self, run, database_url):
        worker = uuid4()
        execute(
            database_url,
            """insert into pgflow.workers (worker_id, queue_name, function_name)
               values (%s, 'llm_request_workflow', 'x')""",
            worker,
        )
        execute(
            database_url,
            """insert into nexus.configured_limits
               values (%s, 'openai', 'usd_per_day', 10), (%s, 'groq', 'usd_per_day', 0)""",
            *(worker, worker),
        )
        execute(
            database_url,
            """insert into nexus.charged (scope, kind, period, instance_id, settled, spent)
               values ('openai', 'usd_per_day', (now() at time zone 'utc')::date, %s, 0, 9)""",
            worker,
        )
        limits = run("top", "--json").document["limits"]
        assert [(one["scope"], one["used"]) for one in limits] == [("groq", 1.0), ("openai", 0.9)]

    def test_both_roles_may(self, run, caller_url, nexus_url):
        for url in (caller_url, nexus_url):
            shown = run("top", "--database-url", url)
            assert shown.code == 0
            assert "no nexus alive" in shown.out
            assert "ai_requests_interactive" in shown.out

    def test_without_a_schema_it_says_what_to_run(self, run, empty_database_url):
        assert "pgnexus migrate" in run("top", "--database-url", empty_database_url).err


class TestLive:
    """In a terminal of its own."""

    @pytest.mark.parametrize("leave", ["q", "Q", signal.SIGINT])
    def test_it_is_drawn_again_until_somebody_leaves(self, env, leave):
        terminal, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        before = termios.tcgetattr(child)
        process = subprocess.Popen(
            (*COMMAND, "top", "--interval", "0.1"), env={**env, "TERM": "xterm"},
            stdin=child, stdout=child, stderr=child, start_new_session=True,
        )  # fmt: skip
        try:
            said = read_until(terminal, 3)
            if isinstance(leave, str):
                os.write(terminal, leave.encode())
            else:
                process.send_signal(leave)
            read_until(terminal, None)
            assert process.wait(20) == (0 if isinstance(leave, str) else 130)
            assert "no nexus alive" in said
            assert termios.tcgetattr(child)[3] == before[3]  # echo and line mode are back
        finally:
            process.kill()
            process.wait()
            os.close(terminal)
            os.close(child)


def read_until(terminal: int, frames: int | None) -> str:
    """What was written until so many frames were, or until nothing more comes."""
    said, end = "", time.monotonic() + 30
    while time.monotonic() < end and (frames is None or said.count("pgnexus top") < frames):
        if not select.select([terminal], [], [], 10 if frames else 1)[0]:
            break
        said += os.read(terminal, 65536).decode(errors="replace")
    return said
