"""Tables in a narrow terminal, and where there is none."""

import pytest

LONG = "a-model-with-a-name-that-is-very-long-indeed/and-longer-still"


@pytest.fixture
def asked(run):
    """A request of a model with a long name."""
    return run("ask", "hello", "-m", LONG, "--json").document["request_id"]


@pytest.mark.parametrize("columns", [70, 80, 100, 140])
def test_a_name_that_is_cut_says_so(run, asked, columns):
    ended = run("requests", COLUMNS=str(columns))
    assert max(map(len, ended.out.splitlines())) <= columns
    [row] = [line for line in ended.out.splitlines() if line.startswith(asked)]
    assert row.endswith(("…", LONG))
    assert row.split()[2].endswith("s")  # its age


def test_where_nobody_looks_nothing_is_cut_and_nothing_filled_up(run, asked):
    for verb in ("requests", "queues", "models", "doctor", "demo"):
        ended = run(verb, COLUMNS="")
        assert ended.out
        assert not [line for line in (ended.out + ended.err).splitlines() if line != line.rstrip()], verb
    assert LONG in run("requests", COLUMNS="").out


def test_models_says_in_short_what_to_set(run):
    ended = run("models", COLUMNS="80", GROQ_API_KEY="")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert " set GROQ_API_KEY" in ended.out
    assert "where the nexus runs" not in ended.out
    assert "where the nexus runs" in run("models", "--json").out
