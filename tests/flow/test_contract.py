"""The engine's SQL as its callers see it: one file a test, each in a transaction that is rolled back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Server

CONTRACT = Path(__file__).parent / "contract"
TEMPLATE = "template_pgnexus"
AREAS = {
    "definition",
    "start",
    "claim",
    "inputs",
    "completion",
    "map_aggregation",
    "type_violations",
    "failure_and_retry",
    "exhaustion",
    "conditions",
    "cascades",
    "events",
    "stalls",
    "pruning",
    "shapes",
    "faults",
}
FILES = sorted(CONTRACT.glob("*/*.sql"))
ASSERTION = re.compile(r"\bcheck_\.(?:ok|is|rows|empty|throws|violates|due)\s*\(")


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def assertions(path: Path) -> int:
    """How many assertions are written in a file."""
    text = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
    return len(ASSERTION.findall(text))


@pytest.fixture(scope="module")
def contract_url(server: Server) -> Iterator[str]:
    """One database for all files: they leave nothing behind."""
    database = server.create(template=TEMPLATE)
    with psycopg.connect(server.url(database)) as connection:
        connection.execute((CONTRACT / "assertions.sql").read_text(encoding="utf-8"))
    yield server.url(database)
    server.drop(database)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_contract(contract_url: str, path: Path) -> None:
    with psycopg.connect(contract_url) as connection:
        connection.execute(path.read_text(encoding="utf-8"))
        row = connection.execute("select current_setting('check_.count', true)").fetchone()
        connection.rollback()
    assert row is not None
    held = int(row[0] or 0)
    assert held >= assertions(path), f"only {held} of the {assertions(path)} assertions ran"


def test_an_assertion_can_fail(contract_url: str) -> None:
    fails = [
        "select check_.ok(null, 'x')",
        "select check_.is('null'::jsonb, null, 'x')",
        "select check_.is(count(*), 1, 'x') from pg_class where false",
        "select check_.rows('values (1), (2)', 'values (2), (1)', 'x')",
        "select check_.rows('values (null::text)', 'values ('''')', 'x')",
        "select check_.empty('select 1', 'x')",
        "select check_.throws('select 1', 'P0001', null, 'x')",
        "select check_.throws('select 1 / 0', '22012', 'other words', 'x')",
        "select check_.violates('select 1 / 0', 'some_check', 'x')",
        "select check_.due(now() + interval '61 s', interval '30 s', 'x')",
    ]
    with psycopg.connect(contract_url, autocommit=True) as connection:
        for statement in fails:
            with pytest.raises(psycopg.errors.AssertFailure, match=r"^x: got"):
                connection.execute(statement)


def test_every_area_has_files_and_every_file_has_assertions() -> None:
    assert {path.parent.name for path in FILES} == AREAS
    assert [name(path) for path in FILES if assertions(path) == 0] == []


Rows = list[tuple[Any, ...]]


class Two:
    """Two sessions on one database, the first of which leaves its transaction open until it is told."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self.first = stack.enter_context(psycopg.connect(url))
        self._second = stack.enter_context(psycopg.connect(url, autocommit=True))
        self.watcher = stack.enter_context(psycopg.connect(url, autocommit=True))
        self._thread = stack.enter_context(ThreadPoolExecutor(1))

    def does(self, statement: str, *params: Any) -> Rows:
        """What the first session does, without committing it."""
        return self.first.execute(statement, params).fetchall()

    def beside(self, statement: str, *params: Any) -> Callable[[], Rows]:
        """What the second does beside it, until it is done or waits for the first."""
        running = self._thread.submit(lambda: self._second.execute(statement, params).fetchall())
        while not running.done() and not self._waits():
            time.sleep(0.01)
        return lambda: running.result(30)

    def meanwhile(self, statement: str, *params: Any) -> Callable[[], Rows]:
        """The same, and then the first commits."""
        result = self.beside(statement, *params)
        self.first.commit()
        return result

    def sees(self, statement: str, *params: Any) -> Rows:
        return self.watcher.execute(statement, params).fetchall()

    def _waits(self) -> bool:
        waits = "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        return bool(self.sees(waits, self._second.info.backend_pid))


@pytest.fixture
def two(database_url: str) -> Iterator[Two]:
    with ExitStack() as stack:
        both = Two(stack, database_url)
        both.first.execute((CONTRACT / "assertions.sql").read_text(encoding="utf-8"))
        both.first.execute("select check_.worker(1), check_.worker(2)")
        both.first.commit()
        yield both


CLAIM = "select task_index from pgflow.start_tasks(%s, array[(check_.task(%s, %s)).message_id], check_.worker(%s))"
COMPLETE = "select status from pgflow.complete_task(check_.id(), %s, %s, to_jsonb(1))"
FAIL = "select status from pgflow.fail_task(check_.id(), %s, 0, 'boom')"
OPEN = """select step_slug, task_index, status from pgflow.step_tasks where status in ('queued', 'started')
          union all select step_slug, 0, status from pgflow.step_states where status = 'started'"""


def begin(two: Two, flow: str, slug: str, given: str = "{}") -> None:
    two.does(f"select check_.{flow}(%s)", slug)
    two.does("select check_.start(%s, %s::jsonb)", slug, given)
    two.first.commit()


def test_one_message_is_claimed_by_one_of_two(two: Two) -> None:
    begin(two, "root_map", "mapped", "[1]")
    assert two.does(CLAIM, "mapped", "each", 0, 1) == [(0,)]
    assert two.meanwhile(CLAIM, "mapped", "each", 0, 2)() == []
    assert two.sees("select attempts_count, last_worker_id = check_.worker(1) from pgflow.step_tasks") == [
        (1, True)
    ]


def test_two_ends_of_one_map_finish_it_once(two: Two) -> None:
    begin(two, "root_map", "mapped", "[1, 2]")
    two.does("select check_.claim('mapped')")
    two.first.commit()
    two.does(COMPLETE, "each", 0)
    assert two.meanwhile(COMPLETE, "each", 1)() == [("completed",)]
    assert two.sees(
        "select check_.statuses(), (check_.state('each')).output::text, (check_.run()).remaining_steps"
    ) == [("each:completed total:started", "[1, 1]", 1)]


def test_two_sides_of_a_diamond_start_its_bottom_once(two: Two) -> None:
    begin(two, "diamond", "diamond")
    two.does("select check_.complete('top', '1')")
    two.does("select check_.claim('diamond')")
    two.first.commit()
    two.does(COMPLETE, "left", 0)
    assert two.meanwhile(COMPLETE, "right", 0)() == [("completed",)]
    assert two.sees("select check_.statuses(), (check_.run()).remaining_steps, check_.queued('diamond')") == [
        ("top:completed left:completed right:completed bottom:started", 1, 1)
    ]


def beside(two: Two) -> None:
    """A run of two steps beside each other, either of which fails it; the first is claimed."""
    two.does("select pgflow.create_flow('f', max_attempts => 1)")
    two.does("select pgflow.add_step('f', slug) from unnest(array['a', 'b']) slug")
    two.does("select check_.start('f')")
    two.does(CLAIM, "f", "a", 0, 1)
    two.first.commit()


def test_a_claim_under_way_while_the_run_fails_leaves_nothing_behind(two: Two) -> None:
    beside(two)
    two.does(CLAIM, "f", "b", 0, 2)
    assert two.meanwhile(FAIL, "a")() == [("failed",)]
    two.does(COMPLETE, "b", 0)
    two.first.commit()
    assert two.sees("select (check_.run()).status") == [("failed",)]
    assert two.sees(OPEN) == []
    assert two.sees("select * from check_.messages('f')") == []


def test_a_completion_and_a_failure_at_once_end_in_a_failed_run(two: Two) -> None:
    beside(two)
    two.does(CLAIM, "f", "b", 0, 2)
    two.first.commit()
    two.does(COMPLETE, "b", 0)
    assert two.meanwhile(FAIL, "a")() == [("failed",)]
    assert two.sees("select check_.statuses(), (check_.run()).status, (check_.run()).remaining_steps") == [
        ("a:failed b:completed", "failed", 1)
    ]


def test_a_completion_after_the_failure_that_it_did_not_see_changes_nothing(two: Two) -> None:
    beside(two)
    two.does(CLAIM, "f", "b", 0, 2)
    two.first.commit()
    two.does(FAIL, "a")
    assert two.meanwhile(COMPLETE, "b", 0)() == [("failed",)]
    assert two.sees("select check_.statuses(), (check_.task('b')).output") == [("a:failed b:failed", None)]
    assert two.sees(OPEN) == []


def test_a_retry_under_way_while_the_run_fails_leaves_nothing_behind(two: Two) -> None:
    beside(two)
    two.does("update pgflow.steps set opt_max_attempts = 5 where step_slug = 'b' returning 1")
    two.does(CLAIM, "f", "b", 0, 2)
    two.first.commit()
    two.does(FAIL, "b")
    assert two.meanwhile(FAIL, "a")() == [("failed",)]
    assert two.sees(OPEN) == []
    assert two.sees("select * from check_.messages('f')") == []


def told(two: Two) -> list[str]:
    """What the watcher was told of by now, of all that the first session has committed."""
    two.does("select pg_notify('pgflow_runs', 'end')")
    two.first.commit()
    payloads = [notice.payload for notice in two.watcher.notifies(timeout=30, stop_after=1)]
    while payloads[-1:] != ["end"]:
        payloads += [notice.payload for notice in two.watcher.notifies(timeout=30, stop_after=1)]
    return payloads[:-1]


def test_watchers_are_told_of_a_run_once_a_transaction_and_by_its_id_alone(two: Two) -> None:
    two.watcher.execute("listen pgflow_runs")
    two.does("select check_.diamond()")
    assert told(two) == []
    [(run_id,)] = two.does("select check_.id()::text")
    two.does("select check_.start('diamond', '{\"text\": \"secret\"}')")
    for step in ("top", "left"):
        two.does("select check_.complete(%s, '1')", step)
    assert told(two) == [run_id]
    two.does("select check_.complete('right', '1')")
    two.does("select check_.fail('bottom')")
    assert told(two) == [run_id]
    two.does("select check_.start('diamond', '{}', 2)")
    two.first.rollback()
    assert told(two) == []


def test_watchers_are_told_of_many_runs_in_portions(two: Two) -> None:
    two.watcher.execute("listen pgflow_runs")
    two.does("select check_.sequential()")
    ids = two.does(
        "select run_id::text from pgflow.start_flows('sequential', array_fill('{}'::jsonb, array[700]))"
    )
    payloads = told(two)
    assert max(len(payload) for payload in payloads) < 7_900
    assert len(payloads) <= 5
    assert sorted(",".join(payloads).split(",")) == sorted(run_id for (run_id,) in ids)


def test_a_claim_under_way_while_its_step_is_skipped_leaves_nothing_behind(two: Two) -> None:
    two.does("select pgflow.create_flow('f', max_attempts => 1)")
    two.does("select pgflow.add_step('f', 'm', step_type => 'map', when_exhausted => 'skip')")
    two.does("select pgflow.add_step('f', 'child', array['m'])")
    two.does("select check_.start('f', '[1, 2, 3]')")
    two.does(CLAIM, "f", "m", 0, 1)
    two.first.commit()
    two.does(CLAIM, "f", "m", 1, 2)
    assert two.meanwhile(FAIL, "m")() == [("failed",)]
    two.does(COMPLETE, "m", 1)
    two.first.commit()
    assert two.sees("select check_.statuses()") == [("m:skipped child:started",)]
    assert two.sees(OPEN + " order by 1, 3") == [("child", 0, "queued"), ("child", 0, "started")]
    assert two.sees("select message ->> 'step_slug' from check_.messages('f')") == [("child",)]


def test_a_client_that_reads_and_starts_in_one_transaction_waits_for_nobody(two: Two) -> None:
    begin(two, "root_map", "mapped", "[1, 2]")
    messages = [message for (message,) in two.does("select msg_id from pgmq.read('mapped', 30, 10)")]
    cancelled = two.beside("select pgflow.cancel_run(check_.id())")  # it wants the messages that were read
    assert two.does("select * from pgflow.start_tasks('mapped', %s, check_.worker(1))", messages) == []
    two.first.commit()
    assert cancelled() == [(True,)]
    assert two.sees(OPEN) == []
    assert two.sees("select * from check_.messages('mapped')") == []


def test_what_is_not_started_since_its_run_is_held_can_be_read_again_at_once(two: Two) -> None:
    begin(two, "root_map", "mapped", "[1]")
    read = "select msg_id from pgmq.read('mapped', 30, 10)"
    [(message,)] = two.sees(read)
    two.does("select 1 from pgflow.runs for no key update")
    start = "select task_index from pgflow.start_tasks('mapped', array[%s::bigint], check_.worker(1))"
    assert two.sees(start, message) == []
    two.first.rollback()
    assert two.sees(read) == [(message,)]
    assert two.sees(start, message) == [(0,)]
