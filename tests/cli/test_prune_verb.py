"""`prune`: tells what went, or would go; what makes no sense is refused before anything is looked at."""

import psycopg
import pytest

from pgnexus.cli import exits


@pytest.fixture
def old(database_url):
    """Ten results of ten weeks, one a week, under ids of another version than 7; and ten calls in the books."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            """insert into pgnexus.job_results (request_id, status, output, finished_at)
               select gen_random_uuid(), 'success', '{"response": "Hi"}', now() - n * interval '1 week'
               from generate_series(1, 10) n"""
        )
        connection.execute(
            """insert into nexus.attempts (request_id, attempt, call, instance_id, provider, model, outcome, started_at,
                                           duration_ms)
               select gen_random_uuid(), 1, 1, gen_random_uuid(), 'p', 'm', 'success', now() - n * interval '5 weeks', 5
               from generate_series(1, 10) n"""
        )


def count(url, table):
    with psycopg.connect(url) as connection:
        return connection.execute(f"select count(*) from {table}").fetchone()[0]


def test_a_dry_run_removes_nothing(run, database_url, old):
    shown = run("prune", "--older-than", "30d", "--dry-run")
    assert shown.code == exits.OK, shown
    assert "would go" in shown.out
    assert "nothing was removed" in shown.err
    assert count(database_url, "pgnexus.job_results") == 10


def test_it_tells_what_went(run, database_url, old):
    pruned = run("prune", "--older-than", "30d", "--json").document
    assert pruned["dry_run"] is False
    rows = {one["what"]: one["rows"] for one in pruned["pruned"]}
    assert (rows["results"], rows["attempts"], rows["runs of flows"]) == (6, 10, 0)
    assert all(one["bytes"] > 0 for one in pruned["pruned"] if one["rows"])
    assert count(database_url, "pgnexus.job_results") == 4
    assert "total" in run("prune", "--older-than", "30d").out


def test_only_what_is_named(run, database_url, old):
    pruned = run("prune", "--older-than", "2w", "--only", "attempts", "--json").document
    assert [(one["what"], one["rows"]) for one in pruned["pruned"]] == [("attempts", 10)]
    assert count(database_url, "pgnexus.job_results") == 10


def test_without_an_age_the_settings_say(run, database_url, old):
    kept = run("prune", "--json").document
    assert "results" not in [one["what"] for one in kept["pruned"]]
    gone = run("prune", "--json", PGNEXUS_KEEP_RESULTS=str(8.5 * 7 * 86400)).document
    assert next(one["rows"] for one in gone["pruned"] if one["what"] == "results") == 2
    nothing = run("prune", "--only", "results")
    assert "the settings keep all of that for ever" in nothing.err


def test_each_role_prunes_what_is_its_own(run, caller_url, nexus_url, database_url, old):
    caller = run("prune", "--older-than", "30d", "--json", PGNEXUS_DATABASE_URL=caller_url).document
    assert "attempts" not in [one["what"] for one in caller["pruned"]]
    assert (count(database_url, "pgnexus.job_results"), count(database_url, "nexus.attempts")) == (4, 10)
    nexus = run("prune", "--older-than", "30d", "--json", PGNEXUS_DATABASE_URL=nexus_url).document
    assert "results" not in [one["what"] for one in nexus["pruned"]]
    assert count(database_url, "nexus.attempts") == 0


@pytest.mark.parametrize(
    ("age", "told"),
    [
        ("soon", "'soon' is neither like 90s, 30m, 2h, 7d nor a date and time"),
        ("-5d", "'-5d' is neither like"),
        ("0d", "'0d' is less than a minute ago"),
        ("59s", "less than a minute ago"),
        ("2999-01-01", "less than a minute ago"),
        ("1900-01-01", "more than a century ago"),
        ("99999999999999d", "is before all dates"),
    ],
)
def test_an_age_that_makes_no_sense(run, database_url, old, age, told):
    refused = run("prune", f"--older-than={age}")
    assert refused.code == exits.USAGE, refused
    assert told in refused.err
    assert count(database_url, "pgnexus.job_results") == 10


def test_a_kind_that_is_none(run):
    refused = run("prune", "--older-than", "1d", "--only", "everything")
    assert refused.code == exits.USAGE
    assert "--only: 'everything' is none of results, attempts" in refused.err
