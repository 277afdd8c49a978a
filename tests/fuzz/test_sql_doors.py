"""Any JSON at the doors that are functions of SQL: it is taken or refused, and nothing half of it is stored."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from system import nothing_stored, sql

from pgnexus.messages import LLMRequest, LLMResult
from tests.fuzz.hostile import INJECTIONS, Hostile, Raw

NAMES = st.sampled_from([*LLMRequest.model_fields, *LLMResult.model_fields, "timeout", "delay", "not_before"])
OPTIONS = st.sampled_from(["idempotency_key", "idempotency_ttl", "workflow", "job_id", "instance_id"])
TEXTS = st.sampled_from(INJECTIONS) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | OPTIONS | TEXTS, inner, max_size=6),
    max_leaves=20,
)
MESSAGES = ANY | st.dictionaries(NAMES | OPTIONS, ANY, max_size=8)
QUIET = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# what a statement is refused for when its data is at fault: bad values, limits, and our own words
REFUSALS = ("22", "23", "54", "PN")


@pytest.fixture
def caller(caller_url):
    with psycopg.connect(caller_url, autocommit=True) as connection:
        yield connection


def of_its_data(error: psycopg.Error) -> None:
    """Raise what is no refusal."""
    if not (error.sqlstate or "").startswith(REFUSALS):
        raise error


@QUIET
@given(message=st.dictionaries(NAMES | OPTIONS, ANY, max_size=8))
def test_results_are_read_whatever_they_are(caller, message: Any):
    text = json.dumps(message)
    [row] = caller.execute("select * from pgnexus.read_results(array[%s::jsonb])", [text]).fetchall()
    assert row[0] == 1


@QUIET
@given(messages=st.lists(MESSAGES, max_size=4))
def test_enqueue_takes_or_refuses(caller, messages: list[Any]):
    texts = [json.dumps(message) for message in messages]
    before = stored(caller)
    try:
        rows = caller.execute("select * from pgnexus.enqueue(%s::text[]::jsonb[])", [texts]).fetchall()
    except psycopg.Error as error:
        of_its_data(error)
        rows = []
        messages = []
    assert len(rows) == len(messages)
    assert stored(caller) == before + sum(row[3] for row in rows)


def stored(caller: Any) -> int:
    [row] = caller.execute("select count(*) from pgnexus.job_results").fetchall()
    return int(row[0])


@pytest.mark.parametrize(
    "statement",
    [
        "select * from pgnexus.enqueue(null)",
        "select * from pgnexus.enqueue(array[null]::jsonb[])",
        "select * from pgnexus.enqueue('{}')",
        "select * from pgnexus.enqueue(array['5', '[]', 'null', '\"x\"']::jsonb[])",
        """select * from pgnexus.enqueue(array['{"messages": [1], "timeout": 1e308}']::jsonb[])""",
        """select * from pgnexus.enqueue(array['{"messages": [1], "timeout": "NaN"}']::jsonb[])""",
        """select * from pgnexus.enqueue(array['{"messages": [1], "delay": -1e300}']::jsonb[])""",
        """select * from pgnexus.enqueue(array['{"messages": [1], "not_before": "infinity"}']::jsonb[])""",
        """select * from pgnexus.enqueue(array['{"messages": [1], "deadline": "-infinity"}']::jsonb[])""",
    ],
)
async def test_enqueue_of_nothing_that_could_be_answered(caller, db, statement):
    found = []
    try:
        found = caller.execute(statement).fetchall()
    except psycopg.Error as error:
        of_its_data(error)
    assert found == []
    assert await nothing_stored(db)


async def test_functions_for_whoever_watches(caller, db):
    """Texts with SQL in them go through every function of nexus_api, and are never more than texts."""
    for words in set(INJECTIONS) - {"null"}:  # which is a name that a queue may have
        for statement in (
            "select nexus_api.takes_results(%s)",
            "select count(*) from nexus_api.costs(now(), now(), '{agent}', %s)",
            "select count(*) from nexus_api.standings(1, array[%s])",
            "select pgflow.queue_of(%s)",
            "select pgflow.is_foreign_queue(%s, 'x')",
        ):
            caller.execute(statement, [words])
        for statement in (
            "select nexus_api.create_queue(%s)",
            "select * from nexus_api.costs(now(), now(), array[%s])",
        ):
            with pytest.raises(psycopg.Error):
                caller.execute(statement, [words])
    for statement in (
        "select nexus_api.cancel(null), nexus_api.cancel('{}'), nexus_api.cancel(array[null]::uuid[])",
        "select * from nexus_api.read_streams(null, null, null), nexus_api.read_chunks(null, null, null)",
        "select nexus_api.amend_result(null), nexus_api.watch(null, null)",
    ):
        try:
            caller.execute(statement)
        except psycopg.Error as error:
            of_its_data(error)
    assert await sql(db, "select 1 from pgnexus.schema_migrations")


def test_hostile_messages_are_read_by_the_types_of_the_wire():
    """Pydantic's reading of them raises nothing but its own error."""
    hostile = Hostile(3)
    for _ in range(1000):
        value = hostile.value()
        for kind in (LLMRequest, LLMResult):
            with suppress(ValidationError):
                kind.model_validate({name: plain(value) for name in kind.model_fields})


def plain(value: Any) -> Any:
    return value.text if isinstance(value, Raw) else value
