"""`costs`: calls, tokens and money by what one asks for; what is unknown is never 0."""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from pgnexus.cli import exits

NOW = datetime.now(UTC)
ROW = {
    "model": "gpt-4o",
    "provider": "openai",
    "agent_id": "reviewer",
    "task_type": "coder",
    "complexity": "medium",
    "outcome": "success",
    "started_at": NOW,
    "prompt_tokens": 1_000_000,
    "completion_tokens": 2000,
    "cached_tokens": 300,
    "reasoning_tokens": 40,
    "cost": Decimal("2.5000001"),
    "estimated": False,
}


@pytest.fixture
def book(database_url):
    """Put rows into the books; each with what differs from `ROW`."""

    def book(*rows):
        with psycopg.connect(database_url) as connection:
            for over in rows:
                row = ROW | over
                names, places = ", ".join(row), ", ".join(["%s"] * len(row))
                connection.execute(
                    f"""insert into nexus.attempts (request_id, attempt, call, instance_id, duration_ms, {names})
                        values (gen_random_uuid(), 1, 1, gen_random_uuid(), 5, {places})""",
                    list(row.values()),
                )

    return book


def test_sums_are_exact_by_any_name(run, book):
    book({}, {"agent_id": None}, {"model": "gpt-4o-mini", "cost": Decimal("0.0000001")})
    document = run("costs", "--by", "model", "--json").document
    big, small = document["rows"]
    assert (big["model"], big["calls"], big["cost"]) == ("gpt-4o", 2, "5.0000002")
    assert (big["prompt_tokens"], big["completion_tokens"], big["cached_tokens"]) == (2_000_000, 4000, 600)
    assert (big["reasoning_tokens"], big["calls_of_unknown_cost"]) == (80, 0)
    assert (small["model"], small["cost"]) == ("gpt-4o-mini", "0.0000001")
    assert document["total"]["cost"] == "5.0000003"
    by_two = run("costs", "--by", "agent,model", "--json").document
    found = {(row["agent"], row["model"]): row["calls"] for row in by_two["rows"]}
    assert found == {("reviewer", "gpt-4o"): 1, (None, "gpt-4o"): 1, ("reviewer", "gpt-4o-mini"): 1}
    for name in ("provider", "task_type", "complexity", "outcome"):
        [row] = run("costs", "--by", name, "--json").document["rows"]
        assert (row[name], row["calls"]) == (ROW[name], 3)


def test_what_is_unknown_is_told_as_such(run, book):
    nothing_used = {"prompt_tokens": 0, "completion_tokens": 0, "outcome": "too_many_requests"}
    book({"cost": None}, {"model": "free", "cost": 0}, {"model": "failed", "cost": None} | nothing_used)
    rows = {row["model"]: row for row in run("costs", "--json").document["rows"]}
    assert (rows["gpt-4o"]["cost"], rows["gpt-4o"]["calls_of_unknown_cost"]) == (None, 1)
    assert (rows["free"]["cost"], rows["free"]["calls_of_unknown_cost"]) == ("0", 0)
    assert (rows["failed"]["cost"], rows["failed"]["calls_of_unknown_cost"]) == (None, 0)
    shown = run("costs")
    lines = {line.split()[0]: line for line in shown.out.splitlines() if line.strip()}
    assert "1 unknown" in lines["gpt-4o"]
    assert "$" not in lines["gpt-4o"]
    assert "$0" in lines["free"]
    assert "$" not in lines["failed"]
    assert "$0 + 1 unknown" in lines["total"]
    assert "input_price" in shown.err


def test_a_table_that_people_can_read(run, book):
    book({}, {"model": "gpt-4o-mini", "cost": Decimal("0.0000001"), "estimated": True})
    shown = run("costs")
    assert "1,000,000" in shown.out
    assert "$2.50" in shown.out
    assert "<$0.000001" in shown.out
    assert "total" in shown.out
    assert "2,000,000" in shown.out
    assert "1 calls are estimated" in shown.err
    narrow = run("costs", COLUMNS="80")
    assert max(map(len, narrow.out.splitlines())) <= 80
    assert "reasoning" not in narrow.out


def test_days_and_hours_are_utc_and_in_order(run, book):
    book(*({"started_at": datetime(2030, 1, day, 23, 30, tzinfo=UTC), "cost": day} for day in (2, 1, 3)))
    days = run("costs", "--by", "day", "--json").document["rows"]
    assert [(row["day"], row["cost"]) for row in days] == [
        ("2030-01-01", "1"),
        ("2030-01-02", "2"),
        ("2030-01-03", "3"),
    ]
    hours = run("costs", "--by", "hour", "--json").document["rows"]
    assert hours[0]["hour"].startswith("2030-01-01T23:00:00")
    assert "2030-01-01 23:00" in run("costs", "--by", "hour").out


def test_only_those_of_a_time_and_an_agent(run, book):
    book(
        {},
        {"started_at": NOW - timedelta(days=3)},
        {"started_at": NOW - timedelta(days=60)},
        {"agent_id": "other"},
    )

    def calls(*options):
        return run("costs", *options, "--json").document["total"]["calls"]

    assert calls() == 3
    assert calls("--since", "all") == 4
    assert calls("--since", "2d") == 2
    assert calls("--since", "7d", "--until", "1d") == 1
    assert calls("--agent", "reviewer", "--since", "all") == 3
    assert calls("--agent", "nobody") == 0


def test_nothing_there(run):
    ended = run("costs")
    assert (ended.code, ended.out) == (0, "")
    assert "no calls" in ended.err
    document = run("costs", "--json").document
    assert (document["rows"], document["total"]["calls"], document["total"]["cost"]) == ([], 0, None)


def test_what_cannot_be_asked_for(run):
    ended = run("costs", "--by", "colour", "--json")
    assert ended.code == exits.USAGE
    assert "outcome" in ended.error["message"]
    assert "--until" in run("costs", "--until", "soon", "--json").error["message"]


def test_either_role_may_ask(run, book, caller_url, nexus_url):
    book({})
    for url in (caller_url, nexus_url):
        ended = run("costs", "--json", PGNEXUS_DATABASE_URL=url)
        assert json.loads(ended.out)["total"]["calls"] == 1, ended


def test_after_a_real_request(run):
    run("ask", "hello")
    [row] = run("costs", "--by", "provider,outcome", "--json").document["rows"]
    assert (row["provider"], row["outcome"], row["calls"]) == ("mock", "success", 1)
    assert row["calls_of_unknown_cost"] == 1


def test_the_queries_of_its_page_run(database_url, book):
    book({"started_at": NOW - timedelta(days=1)}, {"outcome": "provider_timeout"})
    page = Path(__file__).parents[2] / "docs" / "costs.md"
    queries = re.findall(r"^```sql\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(queries) == 3
    with psycopg.connect(database_url) as connection:
        found = [connection.execute(query).fetchall() for query in queries]
    assert [len(rows) for rows in found] == [2, 1, 0]
