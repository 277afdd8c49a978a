"""Every accepted request has ended once, what was rolled back never was, and callers heard what is stored."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from uuid import UUID

from chaos.draw import SHARING
from chaos.ledger.evidence import FLOW, Evidence
from chaos.ledger_file import Asked

_PROVIDERS_FAULT = {
    "provider_unavailable",
    "rate_limited",
    "bad_answer",
    "provider_timeout",
    "answer_too_long",
    "authentication_failed",
}
_LATE = 3.0  # seconds after its end in which a request may still be called for: nobody knew yet


def lost(seen: Evidence) -> list[str]:
    """Accepted, and no trace of it."""
    wrong = [
        f"{_name(one)}: accepted, and gone"
        for one in seen.requests
        if one.accepted and one.request_id not in seen.results
    ]
    return wrong + [
        f"{_name(one)}: accepted, and no run"
        for one in seen.flows
        if one.accepted and one.request_id not in seen.runs
    ]


def stuck(seen: Evidence) -> list[str]:
    """Not ended, though everything is well again."""
    wrong = [
        f"{row.request_id} {row.mark}: still {row.status}"
        for row in seen.results.values()
        if row.finished_at is None
    ]
    return wrong + [
        f"run {row.run_id}: still started" for row in seen.runs.values() if row.status == "started"
    ]


def doubled(seen: Evidence) -> list[str]:
    """Two requests of one key, two results of one request, two bookings of one run."""
    wrong = []
    of_key: dict[str, list[Asked]] = defaultdict(list)
    for one in seen.requests:
        if one.key is not None:
            of_key[one.key].append(one)
    for key, all_of_key in of_key.items():
        stored = [one.request_id for one in all_of_key if one.request_id in seen.results]
        if len(stored) > 1:
            wrong.append(f"key {key}: {len(stored)} requests {stored}")
    for one in seen.requests:
        row = seen.results.get(one.request_id)
        if row is not None:
            wrong += _heard_otherwise(one, row.status, row.text or "")
    for one in seen.flows:
        run = seen.runs.get(one.request_id)
        if run is not None:
            wrong += _heard_otherwise(one, *_end_of(run))
            if run.bookings != (run.status == "completed"):
                wrong.append(f"{_name(one)}: {run.status}, and {run.bookings} bookings")
    return wrong


def _end_of(run: Any) -> tuple[str, str]:
    """The status and text that a caller hears."""
    if run.status == "completed":
        return "success", "\n".join(run.output["booked"])
    return "cancelled" if run.cancelled else run.status, ""


def _heard_otherwise(one: Asked, status: str, text: str) -> list[str]:
    stored = (status, text)
    wrong = [
        f"{_name(one)}: its caller heard {heard}, stored is {stored}"
        for heard in one.heard
        if heard != stored and not (status != "success" and heard[0] == status)
    ]
    if one.read is not None and stored != ("success", one.read):
        wrong.append(f"{_name(one)}: its caller read {one.read!r}, stored is {stored}")
    return wrong


def never_were(seen: Evidence) -> list[str]:
    """What was rolled back left no trace, orders have their requests, and all was asked by somebody."""
    called = {call.mark for call in seen.calls}
    wrong = []
    for one in seen.requests:
        if one.undone and (one.request_id in seen.results or one.mark in called):
            wrong.append(f"{_name(one)}: rolled back, and there all the same")
        if one.kind == "joined" and (one.request_id in seen.results) != (one.request_id in seen.orders):
            wrong.append(f"{_name(one)}: an order without its request, or the other way round")
    known = {one.request_id for one in seen.asked}
    for row in seen.results.values():
        asked = UUID(row.job_id.split("/")[0]) in known if row.workflow == FLOW else row.request_id in known
        if not asked:
            wrong.append(f"{row.request_id} {row.mark}: nobody asked this")
    return wrong


def ends(seen: Evidence) -> list[str]:
    """Nobody's request ends in a way that it gave no cause for, and nothing is called for one that has ended."""
    wrong = [f"{_name(one)}: {fault}" for one in seen.asked for fault in one.faults]
    calls = seen.calls_of_marks()
    for one in seen.requests:
        row = seen.results.get(one.request_id)
        if row is None or row.finished_at is None:
            continue
        if row.status != "success" and row.error not in _causes(one):
            wrong.append(f"{_name(one)} {one.options}: ended as {row.status}, {row.error}")
        if one.kind in SHARING:
            continue
        end = seen.moment(row.finished_at)
        late = [
            call for call in calls[one.mark] if call.began > end + _LATE and not seen.record.orphaned(call)
        ]
        wrong += [
            f"{_name(one)}: ended as {row.status}, {row.error} at {end:.2f}, then {call}" for call in late
        ]
    for one in seen.flows:
        run = seen.runs.get(one.request_id)
        if run is not None and run.status == "failed" and not (one.left if run.cancelled else _excused(run)):
            wrong.append(f"{_name(one)}: failed of {run.error!r}, cancelled: {run.cancelled}")
    return wrong


def _causes(one: Asked) -> set[str]:
    """The errors that this request may end with."""
    causes = set(_PROVIDERS_FAULT)
    if one.agent in ("spender", "one"):
        causes.add("quota_exceeded")
    if one.options.get("timeout") is not None:
        causes.add("timeout")
    if one.left or one.cancel_after is not None or one.chunks is not None or one.kind == "stream":
        causes.add("cancelled")
    return causes


def _excused(run: Any) -> bool:
    """Whether a model's answer could not be had, or its workers were killed too often."""
    return run.error is not None and any(
        cause in run.error for cause in (*_PROVIDERS_FAULT, "its worker was lost")
    )


def _name(one: Asked) -> str:
    return f"{one.mark} {one.request_id} of {one.caller}"
