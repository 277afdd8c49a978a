"""The ledger of `python -m chaos` finds what is lost, doubled, stuck, or otherwise wrong: it is fed with each."""

from __future__ import annotations

import json
import random
from collections import namedtuple
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chaos import logs, report
from chaos.account import ProviderCall, read_calls
from chaos.draw import KINDS, drawn
from chaos.faults import hands
from chaos.ledger import books, calls, fates
from chaos.ledger.evidence import Evidence
from chaos.ledger.verdict import Verdict, recovery
from chaos.ledger_file import Asked, LedgerFile, read_ledgers
from chaos.provider import text_of
from chaos.record import Record, Struck
from chaos.settings import LEASE

RESULT = {
    "status": "success", "error": None, "enqueued_at": None, "finished_at": datetime.fromtimestamp(1010, UTC),
    "workflow": "LLMRequestWorkflow", "job_id": None, "cached": False, "shared": False, "cost": 1,
    "prompt_tokens": 3, "completion_tokens": 4, "attempts": 1,
}  # fmt: skip
ATTEMPT = {
    "provider": "alpha", "model": "m1", "attempt": 1, "call": 1, "instance_id": "i", "outcome": "success", "cost": 1,
    "prompt_tokens": 3, "completion_tokens": 4, "estimated": False, "started_at": datetime.fromtimestamp(1001, UTC),
    "duration_ms": 100, "agent_id": None,
}  # fmt: skip


def row(values: dict[str, Any], **more: Any) -> Any:
    values = values | more
    return namedtuple("row", values)(**values)


def call(name: str = "1.1", began: float = 1.0, **over: Any) -> ProviderCall:
    given = {"worker": "w1", "vendor": "alpha", "model": "m1", "mark": "call-1", "what": "whole"}
    given |= {"prompt_tokens": 3, "completion_tokens": 4, "whole": True, "told": True}
    return ProviderCall(call=name, began=began, ended=began + 0.1, **(given | over))


def asked(kind: str = "call", **over: Any) -> Asked:
    return Asked(uuid4(), kind, "call-1", "c1", {"timeout": None}, **({"accepted": True} | over))


def well() -> Evidence:
    """One request, called for once, and answered; monotonic time is wall time less 1,000 s."""
    one = asked()
    one.heard.append(("success", text_of("1.1", "call-1")))
    result = row(RESULT, request_id=one.request_id, mark="call-1", text=text_of("1.1", "call-1"))
    totals = {"cost": 1, "prompt_tokens": 3, "completion_tokens": 4, "calls": 1}
    return Evidence(
        asked=[one],
        calls=[call()],
        record=Record(),
        results={one.request_id: result},
        runs={},
        orders=set(),
        attempts=[row(ATTEMPT, request_id=one.request_id)],
        sums=[row(totals, request_id=one.request_id)],
        offset=1000.0,
    )


def changed(seen: Evidence, **over: Any) -> Evidence:
    """The same, with these columns of its one result."""
    [(request_id, result)] = seen.results.items()
    return replace(seen, results={request_id: result._replace(**over)})


CHECKS = (
    fates.lost, fates.stuck, fates.doubled, fates.never_were, fates.ends, calls.texts, calls.at_once,
    calls.one_flight, books.account, books.sums,
)  # fmt: skip


def found(seen: Evidence) -> set[str]:
    """The checks that find something wrong."""
    names = {check.__name__ for check in CHECKS if check(seen)}
    names |= {check.__name__ for check in (calls.again, calls.retry_after) if check(seen)[1]}
    return names


def test_nothing_is_wrong_where_all_is_well() -> None:
    assert found(well()) == set()


def test_lost() -> None:
    assert "lost" in found(replace(well(), results={}, attempts=[], sums=[], calls=[]))
    assert "lost" in found(replace(well(), asked=[*well().asked, asked("flow")]))


def test_stuck() -> None:
    assert found(changed(well(), status="enqueued", finished_at=None, text=None)) >= {"stuck"}


def test_another_result_than_its_caller_heard() -> None:
    assert found(changed(well(), status="failed", error="rate_limited", text=None)) == {"doubled"}


def test_two_requests_of_one_key() -> None:
    seen = well()
    [result] = seen.results.values()
    pair = [asked("keyed", key="k"), asked("keyed", key="k")]
    results = {one.request_id: result._replace(request_id=one.request_id) for one in pair}
    assert "doubled" in found(replace(seen, asked=pair, results=results, sums=[], attempts=[]))


def test_two_bookings_of_one_run() -> None:
    one = asked("flow")
    values = {"status": "completed", "cancelled": False, "output": {"booked": []}, "error": None}
    run = row(values, run_id=one.request_id, bookings=2)
    assert found(Evidence([one], [], Record(), {}, {one.request_id: run}, set(), [], [], 0.0)) == {"doubled"}


def test_rolled_back_and_there() -> None:
    seen = well()
    seen.asked[0].undone, seen.asked[0].accepted, seen.asked[0].heard = True, False, []
    assert found(seen) == {"never_were"}


def test_a_request_without_its_order() -> None:
    seen = well()
    seen.asked[0].kind = "joined"
    assert found(seen) == {"never_were"}


def test_nobody_asked() -> None:
    assert "never_were" in found(replace(well(), asked=[]))


def test_an_end_without_a_cause() -> None:
    seen = changed(well(), status="timeout", error="timeout", text=None)
    seen.asked[0].heard.clear()
    assert "ends" in found(seen)
    assert "ends" in found(changed(seen, status="cancelled", error="cancelled"))
    assert "ends" not in found(changed(seen, status="failed", error="bad_answer"))


def test_called_for_after_its_end() -> None:
    seen = well()
    seen.calls.append(call("1.2", began=20.0))
    assert "ends" in found(seen)


def test_called_twice_without_a_reason() -> None:
    seen = well()
    seen.calls.append(call("1.2", began=1.5))
    assert {"again", "account"} <= found(seen)


@pytest.mark.parametrize(
    ("struck", "reason"),
    [
        (Struck("kill worker", 1.2, 1.4, ("w1",)), "worker killed"),
        (Struck("freeze", 1.2, 9.0, ("w1",)), "worker frozen"),
        (Struck("stop database", 1.2, 1.4), "database away"),
        (Struck("hang", 1.2, 1.4, ("w1",)), "database away"),
        (Struck("kill provider", 1.05, 1.4), "provider killed"),
    ],
)
def test_called_twice_for_a_reason(struck: Struck, reason: str) -> None:
    seen = well()
    seen.calls.append(call("1.2", began=1.5))
    seen.record.struck.append(struck)
    assert calls.again(seen) == ({reason: 1}, [])


def test_somebody_else_was_killed() -> None:
    seen = well()
    seen.calls.append(call("1.2", began=1.5))
    seen.record.struck.append(Struck("kill worker", 1.2, 1.4, ("w2",)))
    assert len(calls.again(seen)[1]) == 1


def test_a_refusal_is_a_reason_and_its_wait_is_heeded() -> None:
    seen = well()
    seen.calls[:] = [call(what="rate_limited", whole=False, told=False, wait=1), call("1.2", began=1.5)]
    reasons, wrong = calls.again(seen)
    assert (reasons, wrong) == ({"retry or fallback after rate_limited": 1}, [])
    assert calls.retry_after(seen)[1]
    seen.calls[1].began = 2.2
    assert calls.retry_after(seen) == (1, [])


def test_not_the_answer_that_was_given() -> None:
    seen = changed(well(), text="something else")
    seen.asked[0].heard.clear()
    assert found(seen) == {"texts"}


def test_more_at_once_than_allowed() -> None:
    seen = well()
    seen.calls.extend(call(f"1.{number}", mark=f"call-{number}") for number in range(2, 40))
    assert "at_once" in found(seen)


def test_one_flight_asked_twice() -> None:
    seen = well()
    seen.asked[0].kind = "flight"
    seen.calls.append(call("1.2", began=1.05))
    assert "one_flight" in found(seen)


def test_not_in_the_books() -> None:
    assert found(replace(well(), attempts=[])) == {"account"}


def test_another_amount_than_was_told() -> None:
    seen = well()
    seen.attempts[0] = seen.attempts[0]._replace(completion_tokens=5)
    assert found(seen) == {"account"}


def test_a_result_that_does_not_tell_its_sum() -> None:
    assert found(changed(well(), cost=2)) == {"sums"}


def test_recovery_is_from_the_heal_to_the_next_result() -> None:
    seen = changed(well(), enqueued_at=datetime.fromtimestamp(1005, UTC))
    seen.record.struck += [Struck("freeze", 1.0, 4.0), Struck("hang", 1.0, 6.0)]
    assert recovery(seen) == {"freeze": [6.0]}


def test_a_note_may_be_lost_with_a_worker_that_could_not_store_it() -> None:
    seen = replace(well(), attempts=[])
    seen.record.struck.append(Struck("kill worker", 9.0, 12.0, ("w1",)))
    seen.record.last_signs["w1"] = 8.5
    assert found(seen) == {"account"}
    seen.record.last_signs["w1"] = 0.5
    assert found(seen) == set()


def test_a_note_may_be_lost_with_a_worker_that_was_cut_off_until_it_was_killed() -> None:
    seen = replace(well(), attempts=[])
    seen.record.last_signs["w1"] = 8.5  # sent before, and held up on its way
    seen.record.struck += [Struck("hang", 0.5, 5.0, ("w1",)), Struck("kill worker", 9.0, 12.0, ("w1",))]
    assert found(seen) == {"account"}
    seen.record.struck.append(Struck("freeze", 4.5, 9.0, ("w1",)))
    assert found(seen) == set()


def test_logs_tell_who_was_late(tmp_path: Path) -> None:
    clock = tmp_path / "w1.clock"
    lines = [
        "ready: nexus, pid 1",
        "  instance  ef803423-9ec7-4890-acac-26d6b23abd3f",
        "2026-11-22 20:43:10,500 WARNING instance ef80: its lease has run out: no answer",
        "2026-11-22 20:43:20,500 WARNING instance ef80: had been given up; others have its work",
        "2026-11-22 20:43:40,500 WARNING instance ef80: its lease has run out: no answer",
    ]
    ran_out = datetime(2026, 11, 22, 20, 43, 10, 500_000).timestamp()
    assert logs.instance(lines) == "ef803423-9ec7-4890-acac-26d6b23abd3f"
    [first, second] = logs.late(lines, clock, ran_out)
    assert first == (-2 * LEASE, 11)
    assert second == (30 - 2 * LEASE, float("inf"))
    clock.write_text("+61.000\n")
    assert logs.late(lines, clock, ran_out) == [(float("-inf"), float("inf"))]
    assert logs.late(lines[:2], clock, ran_out) == []


def test_files_are_read_up_to_where_a_kill_cut_them_off(tmp_path: Path) -> None:
    one, two = uuid4(), uuid4()
    rest = {"kind": "call", "mark": "m", "options": {}, "key": None, "cancel_after": None, "chunks": None}
    path = tmp_path / "c1.ledger"
    LedgerFile(path).note({"asks": str(one), **rest}, {"asks": str(two), **rest}, {"accepted": str(one)})
    with path.open("a") as file:
        file.write('{"accepted": "')
    assert [each.accepted for each in read_ledgers([path])] == [True, False]
    account = tmp_path / "account.jsonl"
    begun = {"call": "1.1", "worker": "w", "vendor": "alpha", "model": "m1", "mark": "m", "what": "whole"}
    begun |= {"prompt_tokens": 1, "completion_tokens": 2, "began": 5.0}
    account.write_text(json.dumps(begun) + '\n{"call": "1.1", "en')
    assert [each.ended for each in read_calls(account)] == [None]


def test_a_seed_draws_the_same_again() -> None:
    first, again, other = (list(islice(drawn(seed, "c1", 5.0), 500)) for seed in (1, 1, 2))
    assert first == again != other
    assert {one.kind for one in first} == set(KINDS)
    packs = [list(islice(hands._drawn(random.Random(7)), 100)) for _ in range(2)]
    assert packs[0] == packs[1]
    assert {fault.name for fault in packs[0]} == {fault.name for fault in hands.FAULTS}


def test_the_report_says_what_is_wrong(tmp_path: Path) -> None:
    green, red = Verdict(1, accepted=5, recovery={"freeze": [0.5, 1.5]}), Verdict(2, lost=["x: gone"])
    assert "green" in report.of_round(green)
    assert "lost: x: gone" in report.of_round(red)
    table = report.of_all([green, red])
    assert "freeze" in table
    assert "1.00" in table
    report.write(tmp_path / "report.json", [green, red], {"python": "3"})
    assert [one["green"] for one in json.loads((tmp_path / "report.json").read_text())["rounds"]] == [
        True,
        False,
    ]
