"""What must be true when all is over: the callers' list, the vendor's account and the books laid side by side.

Each function returns what it found wrong, in words; none is good. Exceptions are named where they are granted.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from pgnexus.db.database import Database
from tests.survival.ledger_faults import Faults
from tests.survival.ledger_requests import Asked
from tests.survival.ledger_vendor import VendorCall
from tests.system import sql

# Calls that are in the books though the vendor may never have heard of them: given up, or their worker killed, before
# their first byte was read.
_UNHEARD = {"unknown", "cancelled"}
_MOMENT = 0.3  # seconds in which the vendor hears that a caller has gone
_AT_ONCE = {"alpha": 12, "beta/m2": 8}


async def results(db: Database, asked: Iterable[Asked]) -> list[str]:
    """Every accepted request has ended once, and nothing else is there."""
    rows = {row.request_id: row for row in await sql(db, "select * from pgnexus.job_results")}
    wrong = [f"{one.mark} {one.request_id} was never accepted" for one in asked if not one.accepted]
    wrong += [f"{one.mark} {one.request_id}: no result" for one in asked if one.request_id not in rows]
    wrong += [f"{row.request_id}: still {row.status}" for row in rows.values() if row.finished_at is None]
    known = {one.request_id for one in asked}
    return wrong + [f"{request_id}: nobody asked this" for request_id in rows.keys() - known]


_PROVIDERS_FAULT = {"provider_unavailable", "rate_limited", "bad_answer", "provider_timeout"}


async def ends(db: Database, asked: list[Asked], calls: list[VendorCall], faults: Faults) -> list[str]:
    """Nobody's request ends in a way that it gave no cause for, and nothing is called for one that has ended."""
    rows = await sql(
        db, "select request_id, status, error ->> 'type' as type, finished_at from pgnexus.job_results"
    )
    found = {row.request_id: row for row in rows}
    of_mark: dict[str, list[VendorCall]] = defaultdict(list)
    for call in calls:
        of_mark[call.mark].append(call)
    clock = time.time() - time.monotonic()
    wrong = []
    for one in asked:
        row = found.get(one.request_id)
        if row is None or row.finished_at is None:
            continue
        if row.status != "success" and row.type not in _causes(one):
            wrong.append(f"{one.mark} {one.options}: ended as {row.status}, {row.type}")
        end = row.finished_at.timestamp() - clock
        if one.kind in ("plain", "stream"):
            late = [c for c in of_mark[one.mark] if c.began > end + 3 and not faults.orphaned(c)]
            wrong += [
                f"{one.mark} {one.options}: ended as {row.type} at {end:.2f}, and then {c}" for c in late
            ]
    return wrong


def _causes(one: Asked) -> set[str]:
    """The errors that this request may end with."""
    causes = set(_PROVIDERS_FAULT)
    if one.options.get("provider") == "beta":
        causes.add("authentication_failed")
    if one.agent in ("spender", "one"):
        causes.add("quota_exceeded")
    if one.options.get("timeout") is not None:
        causes.add("timeout")
    if one.cancel_after is not None or one.chunks is not None:
        causes.add("cancelled")
    return causes


def retry_after(calls: list[VendorCall]) -> list[str]:
    """A worker that was told to wait a second asks no sooner again for the same request."""
    wrong = []
    last: dict[tuple[str, str, str, str], VendorCall] = {}
    for call in calls:
        if call.mark.startswith(("plain", "stream")):
            key = (call.worker, call.mark, call.vendor, call.model)
            before = last.get(key)
            if before is not None and before.ended is not None and not before.left:
                waited = call.began - before.ended
                if waited < before.wait - 0.02:
                    wrong.append(f"{key}: asked again after {waited:.2f} s, told to wait {before.wait} s")
            last[key] = call
    return wrong


LEFT = """
select 'run ' || status as what, count(*) as n from pgflow.runs where status = 'started' group by 1
union all select 'task ' || status, count(*) from pgflow.step_tasks where status in ('queued', 'started') group by 1
union all select 'parked', count(*) from nexus.parked
union all select 'flights', count(*) from nexus.flights
union all select 'reservations', count(*) from nexus.reservations where not %(crashed)s
union all select 'calls in flight', count(*) from nexus.reservations r cross join lateral json_array_elements(r.calls) c
  where not exists (select from nexus.attempts a where a.instance_id = r.instance_id and a.request_id = (c ->> 0)::uuid
                      and a.attempt = (c ->> 1)::int and a.call = (c ->> 2)::int)
union all select 'late calls', count(*) from nexus.late_calls
union all select 'scheduled', count(*) from pgnexus.scheduled_requests
union all select 'queue ' || queue, depth from nexus_api.queue_metrics()
union all select 'archive ' || queue, archived from nexus_api.queue_metrics()
union all select 'held of ' || scope || ' ' || kind, held from nexus_api.limits() where held <> 0
union all select 'holdings of the dead', count(*) from nexus.holdings h
  where not exists (select from nexus.live_instances() l where l = h.instance_id)
"""


async def unended(db: Database) -> list[str]:
    """All that is known of what does not end, and of what it may wait for."""
    rows = await sql(
        db,
        """select j.request_id, j.status, r.status as run, t.step_slug, t.status as task, t.attempts_count,
                  t.not_before, t.message_id, t.last_worker_id, p.scope, p.parked_at, j.agent_id, t.error_message, now()
           from pgnexus.job_results j
           left join pgflow.runs r on r.run_id = j.request_id
           left join pgflow.step_tasks t on t.run_id = j.request_id and t.status in ('queued', 'started')
           left join nexus.parked p on p.run_id = j.request_id
           where j.finished_at is null or r.status = 'started'""",
    )
    for table in ("holdings", "buckets", "breakers", "flights", "parked"):
        rows += [(table, row) for row in await sql(db, f"select * from nexus.{table}")]
    rows += await sql(db, "select * from pgflow.workers where stopped_at is null")
    return [*map(str, rows), *await left(db, Faults())]


async def left(db: Database, faults: Faults) -> list[str]:
    """What should be gone. A note of booked calls may be back after a crash: it goes when its worker ends."""
    async with db.connection() as connection:
        cursor = await connection.execute(
            f"select * from ({LEFT}) l where n <> 0", {"crashed": faults.crashed}
        )
        return [f"{row.what}: {row.n}" for row in await cursor.fetchall()]


async def sums(db: Database) -> list[str]:
    """A result tells the sum of its request's calls; one that was given again and asked nobody costs nothing."""
    rows = await sql(
        db,
        """select j.request_id, j.status, j.cost, j.prompt_tokens, j.completion_tokens, j.attempts, s.cost as s_cost,
                  s.prompt_tokens as s_prompt, s.completion_tokens as s_completion, s.calls,
                  coalesce((j.output ->> 'cached')::bool, (j.output ->> 'shared')::bool, false) as given
           from pgnexus.job_results j cross join lateral nexus.sum_of_calls(j.request_id) s""",
    )
    wrong = []
    for row in rows:
        told = (row.cost, row.prompt_tokens or 0, row.completion_tokens or 0, row.attempts)
        books = (row.s_cost, row.s_prompt, row.s_completion, row.calls)
        if row.given and row.s_cost is None:
            books = (0, *books[1:])
        if told != books:
            wrong.append(f"{row.request_id} ({row.status}, given={row.given}): told {told}, books {books}")
    return wrong


async def account(db: Database, asked: list[Asked], calls: list[VendorCall], faults: Faults) -> list[str]:
    """Every call of the vendor's account is in the books, at what it told, and the books have no others."""
    mark_of = {one.request_id: one.mark for one in asked}
    rows = await sql(db, "select * from nexus.attempts")
    booked: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for row in rows:
        booked[mark_of[row.request_id], row.provider, row.model].append(row)
    seen: dict[tuple[str, str, str], list[VendorCall]] = defaultdict(list)
    for call in calls:
        seen[call.mark, call.vendor, call.model].append(call)
    charged = {one.mark for one in asked if one.agent in ("spender", "one")}
    wrong = []
    for key in booked.keys() | seen.keys():
        of_budget = key[0] in charged or key[1] == "beta"
        wrong += _compared(key, booked[key], seen[key], faults, charged=of_budget)
    return wrong


def _compared(
    key: tuple[str, str, str], booked: list[Any], seen: list[VendorCall], faults: Faults, *, charged: bool
) -> list[str]:
    wrong = []
    lost = len(seen) - len(booked)
    may_be_lost = sum(faults.note_lost(call, charged) for call in seen)
    if lost > may_be_lost:
        wrong.append(f"{key}: {len(seen)} calls, {len(booked)} in the books: {_words(booked, seen)}")
    unheard = sum(row.outcome in _UNHEARD for row in booked)
    if -lost > unheard:
        wrong.append(f"{key}: {len(booked)} in the books, only {len(seen)} calls: {_words(booked, seen)}")
    told = Counter((call.prompt_tokens, call.completion_tokens) for call in seen if call.told)
    heard = Counter(
        (row.prompt_tokens, row.completion_tokens)
        for row in booked
        if not row.estimated and (row.outcome == "success" or row.completion_tokens)
    )
    if heard - told:
        wrong.append(f"{key}: booked {heard - told}, which nobody told: {_words(booked, seen)}")
    guessed = sum(row.estimated for row in booked)
    if (told - heard).total() > guessed + may_be_lost:
        wrong.append(f"{key}: told {told - heard}, which nobody booked: {_words(booked, seen)}")
    return wrong


def _words(booked: list[Any], seen: list[VendorCall]) -> str:
    books = [
        (row.attempt, row.call, str(row.instance_id)[:4], row.outcome, row.completion_tokens, row.estimated)
        for row in booked
    ]
    account = [
        (call.worker, call.what, call.completion_tokens, call.told, call.left, round(call.began, 2))
        for call in seen
    ]
    return f"books {books}, vendor {account}"


async def budgets(db: Database, limits: dict[tuple[str, str], int]) -> list[str]:
    """What budgets count as spent is what the books say, and not more than they allow."""
    wrong = []
    for (scope, kind), most in limits.items():
        kind_of, _, name = scope.partition(":")
        what = "sum(cost)" if kind.startswith("usd") else "sum(prompt_tokens + completion_tokens)"
        where = "provider = 'beta' and %s <> ''" if kind_of == "key" else "agent_id = %s"
        [books] = await sql(
            db, f"select coalesce({what}, 0) as spent from nexus.attempts where {where}", name
        )
        [row] = await sql(
            db,
            "select coalesce(sum(spent), 0) as spent from nexus.charged where scope = %s and kind = %s",
            *(scope, kind),
        )
        if row.spent != books.spent:
            wrong.append(f"{scope} {kind}: {row.spent} counted as spent, the books say {books.spent}")
        if row.spent > most:
            wrong.append(f"{scope} {kind}: {row.spent} spent of {most}")
    return wrong


async def texts(db: Database, asked: list[Asked], calls: list[VendorCall]) -> list[str]:
    """A stored answer is one that the vendor gave in full to this question; a reader who stayed has the same."""
    given: dict[str, set[str]] = defaultdict(set)
    for call in calls:
        if call.whole:
            given[call.mark].add(call.text)
    rows = await sql(
        db,
        """select request_id, output ->> 'response' as text, (output ->> 'cached')::bool as cached,
                  (output ->> 'shared')::bool as shared from pgnexus.job_results where status = 'success'""",
    )
    found = {row.request_id: row for row in rows}
    wrong = []
    for one in asked:
        row = found.get(one.request_id)
        if row is None:
            continue
        if row.text not in given[one.mark]:
            wrong.append(f"{one.mark}: {row.text!r} is no whole answer of the vendor")
        if one.read_to_the_end and "".join(one.heard) != row.text:
            wrong.append(f"{one.mark}: read {''.join(one.heard)!r}, stored {row.text!r}")
        if (row.cached or row.shared) and one.kind not in ("cached", "flight"):
            wrong.append(f"{one.mark}: was given another's answer, and did not ask for that")
    return wrong


def at_once(asked: list[Asked], calls: list[VendorCall], faults: Faults) -> list[str]:
    """Calls at once are never more than allowed; on top come those of frozen workers, whose slots others were given."""
    flood = {one.mark for one in asked if one.agent == "flood"}
    scopes = [(f"{scope}", most, [c for c in calls if scope in (c.vendor, f"{c.vendor}/{c.model}")])
              for scope, most in _AT_ONCE.items()]  # fmt: skip
    scopes.append(("agent:flood", 4, [call for call in calls if call.mark in flood]))
    wrong = []
    for scope, most, of_scope in scopes:
        peak = _peak([call for call in of_scope if not faults.orphaned(call)])
        print(f"{scope}: {peak} calls at once, {most} allowed")
        if peak > most:
            wrong.append(f"{scope}: {peak} calls at once, {most} allowed")
    return wrong


def one_flight(asked: list[Asked], calls: list[VendorCall], faults: Faults) -> list[str]:
    """Of one flight nobody asks twice at a time, but in the place of a worker that was taken for dead, or while the
    database cannot be asked who leads.
    """
    flights = {(one.mark, one.agent) for one in asked if one.kind == "flight"}
    wrong = []
    for mark in {mark for mark, _ in flights}:
        own = [call for call in calls if call.mark == mark and not faults.orphaned(call)]
        own = [call for call in own if not faults.away(call.began)]
        if (peak := _peak(own)) > 1:
            wrong.append(f"flight {mark}: asked {peak} times at once")
    return wrong


def _peak(calls: list[VendorCall]) -> int:
    """The most calls at once; one that its caller left ended a moment before the vendor heard of it."""
    moments = []
    for call in calls:
        assert call.ended is not None
        end = max(call.began, call.ended - _MOMENT) if call.left else call.ended
        moments += [(call.began, 1), (end, -1)]
    now = peak = 0
    for _, change in sorted(moments):
        now += change
        peak = max(peak, now)
    return peak
