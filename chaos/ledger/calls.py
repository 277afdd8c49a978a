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
_FAULTS = ("rate_limited", "failing", "overloaded", "truncated", "broken", "rubbish", "huge", "unauthorized")
# What the books say of a call that came to nothing by the worker's own clock: it waits for two seconds.
_TIMEOUT = 1.8
_HEARD_AS_FAULTS = {"provider_timeout", "provider_unavailable", "bad_answer"}

Key = tuple[str, str, str]  # mark, vendor, model


def again(seen: Evidence) -> tuple[Counter[str], list[str]]:
    """Why a question was asked again, by reason; and those that nothing explains."""
    shared = {one.mark for one in seen.asked if one.kind in SHARING}
    booked, outcomes = _booked(seen), _outcomes(seen)
    reasons: Counter[str] = Counter()
    wrong = []
    for mark, calls in seen.calls_of_marks().items():
        if mark in shared:
            continue  # asked again by others; of one flight and one cached answer there are checks of their own
        for before, call in pairwise(calls):
            said = booked.get(before.call)
            if said is None and before.left and outcomes[_key(before)] & _HEARD_AS_FAULTS:
                said = "provider_timeout"
            reason = _reason(before, call, said, seen.record)
            reasons[reason or "unexplained"] += 1
            if reason is None:
                wrong.append(f"{mark}: {before}, booked as {booked.get(before.call)}, and then {call}")
    return reasons, wrong


def _booked(seen: Evidence) -> dict[str, str]:
    """What the books say became of each of the provider's calls, where both have as many of one question and model."""
    rows: dict[Key, list[str]] = defaultdict(list)
    for row in sorted(seen.attempts, key=lambda row: (row.request_id, row.attempt, row.call)):
        stored = seen.results.get(row.request_id)
        if stored is not None:
            rows[stored.mark, row.provider, row.model].append(row.outcome)
    calls: dict[Key, list[str]] = defaultdict(list)
    for call in seen.calls:
        calls[_key(call)].append(call.call)
    return {
        name: outcome
        for key, names in calls.items()
        if len(names) == len(rows[key])
        for name, outcome in zip(names, rows[key], strict=True)
    }


def _outcomes(seen: Evidence) -> dict[Key, set[str]]:
    """What the books say became of any call of one question and model."""
    found: dict[Key, set[str]] = defaultdict(set)
    for row in seen.attempts:
        stored = seen.results.get(row.request_id)
        if stored is not None:
            found[stored.mark, row.provider, row.model].add(row.outcome)
    return found


def _key(call: ProviderCall) -> Key:
    return call.mark, call.vendor, call.model


def _reason(before: ProviderCall, call: ProviderCall, booked: str | None, record: Record) -> str | None:
    """Why the second call was made, though there was the first one."""
    worker, begin, end = before.worker, before.began, call.began
    if before.what in _FAULTS:
        return f"retry or fallback after {before.what}"
    if record.killed(worker, begin, end):
        return "worker killed"
    if before.ended is None or record.provider_killed(begin, before.over):
        return "provider killed"
    if booked in _HEARD_AS_FAULTS or (before.left and before.over - before.began > _TIMEOUT):
        return f"retry or fallback after {booked or 'provider_timeout'}"
    if record.frozen(worker, begin, end):
        return "worker frozen"
    if record.away(worker, begin, end):
        return "database away"
    if record.was_late(worker, begin, end) or record.orphaned(call):
        return "a lease had run out"
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
