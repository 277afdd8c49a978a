"""The provider's account: why it saw a question more than once, and whether its words were heeded."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

from chaos.account import ProviderCall
from chaos.draw import SHARING
from chaos.ledger.evidence import Evidence
from chaos.ledger_file import Asked
from chaos.record import Record
from chaos.settings import AT_ONCE

_MOMENT = 0.3  # seconds in which the provider hears that a caller has gone
_ANSWERS = ("whole", "slow", "never")  # what is no fault of the provider's by itself
_TIMEOUT = 1.9  # seconds after which a call is given up, about


def again(seen: Evidence) -> tuple[Counter[str], list[str]]:
    """Why a question was asked again, by reason; and those that nothing explains."""
    shared = {one.mark for one in seen.asked if one.kind in SHARING}
    reasons: Counter[str] = Counter()
    wrong = []
    for mark, calls in seen.calls_of_marks().items():
        if mark in shared:
            continue  # asked again by others; of one flight and one cached answer there are checks of their own
        for before, call in pairwise(calls):
            reason = _reason(before, call, seen.record)
            reasons[reason or "unexplained"] += 1
            if reason is None:
                wrong.append(f"{mark}: {before}, and then {call}")
    return reasons, wrong


def _reason(before: ProviderCall, call: ProviderCall, record: Record) -> str | None:
    """Why the second call was made, though there was the first one."""
    worker, begin, end = before.worker, before.began, call.began
    if before.what not in _ANSWERS:
        return f"retry or fallback after {before.what}"
    if before.left and before.over - before.began > _TIMEOUT:
        return f"retry or fallback after a timeout ({before.what})"
    if record.killed(worker, begin, end):
        return "worker killed"
    if before.ended is None or record.provider_killed(begin, before.over):
        return "provider killed"
    if record.frozen(worker, begin, end):
        return "worker frozen"
    if record.away(worker, begin, end):
        return "database away"
    if worker in record.given_up:
        return "worker was late by itself"
    return None


def retry_after(seen: Evidence) -> tuple[int, list[str]]:
    """A worker that was told to wait asks no sooner again for the same request; how often one was told."""
    shared = {one.mark for one in seen.asked if one.kind in SHARING}
    wrong: list[str] = []
    told = 0
    last: dict[tuple[str, str, str, str], ProviderCall] = {}
    for call in seen.calls:
        told += call.wait > 0
        key = (call.worker, call.mark, call.vendor, call.model)
        before = last.get(key)
        last[key] = call
        if call.mark in shared or before is None or before.ended is None or before.left:
            continue
        waited = call.began - before.ended
        if waited < before.wait - 0.02:
            wrong.append(f"{key}: asked again after {waited:.2f} s, told to wait {before.wait} s")
    return told, wrong


def texts(seen: Evidence) -> list[str]:
    """A stored answer is one that the provider gave in full to this question."""
    given: dict[str, set[str]] = defaultdict(set)
    for call in seen.calls:
        if call.whole:
            given[call.mark].add(call.text)
    sharing = {one.request_id for one in seen.asked if one.kind in SHARING}
    wrong = []
    for row in seen.results.values():
        if row.status == "success" and row.text not in given[row.mark]:
            wrong.append(f"{row.mark}: {row.text!r} is no whole answer of the provider")
        if (row.cached or row.shared) and row.request_id not in sharing:
            wrong.append(f"{row.mark}: was given another's answer, and did not ask for that")
    return wrong


def at_once(seen: Evidence) -> list[str]:
    """Calls at once are never more than allowed; on top come those of frozen workers, whose slots others were given."""
    flood = {one.mark for one in seen.asked if one.agent == "flood"}
    wrong = []
    for scope, most in AT_ONCE.items():
        own = [
            call
            for call in seen.calls
            if (call.mark in flood if scope == "agent:flood" else scope in _scopes(call))
        ]
        peak = _peak([call for call in own if not seen.record.orphaned(call)])
        if peak > most:
            wrong.append(f"{scope}: {peak} calls at once, {most} allowed")
    return wrong


def one_flight(seen: Evidence) -> list[str]:
    """Of one flight nobody asks twice at a time, but in the place of a worker that was taken for dead, or while the
    database cannot be asked who leads.
    """
    wrong = []
    for mark in {one.mark for one in seen.asked if one.kind == "flight"}:
        own = [call for call in seen.calls if call.mark == mark and not _led_alone(call, seen.record)]
        if (peak := _peak(own)) > 1:
            wrong.append(f"flight {mark}: asked {peak} times at once")
    return wrong


def _led_alone(call: ProviderCall, record: Record) -> bool:
    return record.orphaned(call) or record.away(call.worker, call.began, call.began)


def agents(asked: list[Asked], names: tuple[str, ...]) -> set[str]:
    """The marks that these agents asked."""
    return {one.mark for one in asked if one.agent in names}


def _scopes(call: ProviderCall) -> tuple[str, str]:
    return call.vendor, f"{call.vendor}/{call.model}"


def _peak(calls: list[ProviderCall]) -> int:
    """The most calls at once; one that its caller left ended a moment before the provider heard of it."""
    moments = []
    for call in calls:
        end = max(call.began, call.over - _MOMENT) if call.left else call.over
        moments += [(call.began, 1), (end, -1)]
    now = peak = 0
    for _, change in sorted(moments):
        now += change
        peak = max(peak, now)
    return peak
