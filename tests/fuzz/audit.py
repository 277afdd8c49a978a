"""After a campaign: every message it sent against what became of it, and the table that says so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pgnexus.db.database import Database
from tests.fuzz.campaign import Ledger
from tests.fuzz.hostile import LANES, MINE, THEIRS
from tests.system import sql

_A_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_VARIES = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+|\".*\"|'.*'")
LEFT = (
    """select request_id, status, deadline, input from pgnexus.job_results
       where finished_at is null and input ->> 'reply_to' is distinct from %s limit 5""",
    """select r.run_id, r.input, t.step_slug, t.status, t.attempts_count, t.not_before, t.error_message
       from pgflow.runs r left join pgflow.step_tasks t using (run_id)
       where r.status = 'started' and %s::text is not null limit 5""",
)


@dataclass
class Verdict:
    """What became of it all; ``faults`` are what must not be."""

    requests: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)
    good_seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    log: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


async def judge(db: Database, ledger: Ledger) -> Verdict:
    """Hold the ledger against the database."""
    verdict = Verdict()
    archived = {queue: await _archive(db, queue) for queue in (*LANES, "ai_results")}
    stored = {str(row.request_id): row for row in await sql(db, "select * from pgnexus.job_results")}
    runs = {str(row.run_id) for row in await sql(db, "select run_id from pgflow.runs")}
    mine = Counter(await _ids(db, MINE))
    forged = {one.request_id for one in ledger.results.values() if one.request_id}
    _judge_requests(verdict, ledger, archived, stored, runs, mine, forged)
    _judge_results(verdict, ledger, archived["ai_results"], stored)
    _judge_good(verdict, ledger, stored)
    for request_id, one in ledger.accepted.items():
        if not (stored[str(request_id)].finished_at or mine[str(request_id)]):
            verdict.lost.append(f"pgnexus.enqueue took {request_id}: {one.text[:150]}")
    verdict.reasons.update(reason for rows in archived.values() for reason in rows.values())
    ended = {request_id: row.status for request_id, row in stored.items() if row.finished_at is not None}
    verdict.statuses.update(ended.values())
    for row in await sql(db, f"select message ->> 'status' as status from pgmq.q_{MINE}"):
        verdict.statuses[row.status] += 1
    if await _ids(db, THEIRS):
        verdict.faults.append("something was written into somebody else's queue")
    for text in LEFT:
        verdict.faults += [f"left: {row}"[:1500] for row in await sql(db, text, MINE)]
    _judge_log(verdict, ledger)
    return verdict


async def _archive(db: Database, queue: str) -> dict[int, str]:
    rows = await sql(db, f"select msg_id, headers ->> 'reason' as reason from pgmq.a_{queue}")
    return {row.msg_id: _kind(row.reason or "NO REASON") for row in rows}


async def _ids(db: Database, queue: str) -> list[str]:
    return [
        row.id for row in await sql(db, f"select lower(message ->> 'request_id') as id from pgmq.q_{queue}")
    ]


def _judge_requests(
    verdict: Verdict,
    ledger: Ledger,
    archived: dict[str, dict[int, str]],
    stored: dict[str, Any],
    runs: set[str],
    mine: Counter[str],
    forged: set[str | None],
) -> None:
    seen: set[str] = {str(request_id) for request_id in ledger.accepted}
    wanted: dict[
        str | None, set[bool]
    ] = {}  # by id: whether on a queue of its own; each place has one result
    for one in [*ledger.requests.values(), *ledger.accepted.values()]:
        wanted.setdefault(one.request_id, set()).add(one.reply_to == MINE)
    for (lane, msg_id), one in ledger.requests.items():
        where = f"{lane} {msg_id}: {one.text[:150]}"
        aside, name = msg_id in archived[lane], one.request_id
        answers = (
            0 if name is None else mine[name] + (name in stored and stored[name].finished_at is not None)
        )
        if name is None:
            verdict.requests["archived"] += 1
            if not aside:
                verdict.lost.append(where)
        elif name in seen:
            verdict.requests["the same id again"] += 1
        else:
            seen.add(name)
            verdict.requests["answered, and archived" if aside else "answered"] += 1
            if answers == 0 or not (aside or name in runs):
                verdict.lost.append(where)
            elif mine[name] > 1 or (answers > len(wanted[name]) and name not in forged):
                verdict.doubled.append(where)


def _judge_results(
    verdict: Verdict, ledger: Ledger, archived: dict[int, str], stored: dict[str, Any]
) -> None:
    seen: set[str] = set()
    for msg_id, one in ledger.results.items():
        where = f"ai_results {msg_id}: {one.text[:150]}"
        there = one.request_id in stored and stored[one.request_id].finished_at is not None
        if msg_id in archived:
            verdict.results["archived"] += 1
            if one.request_id is not None:
                verdict.faults.append(f"archived though it is a result: {where}: {archived[msg_id]}")
        elif not there or one.request_id is None:
            verdict.lost.append(where)
        else:
            verdict.results["the same id again" if one.request_id in seen else "stored"] += 1
            seen.add(one.request_id)
    if ours := set(archived) - set(ledger.results):
        verdict.faults.append(
            f"{len(ours)} results of nexus itself are in the archive: {archived[min(ours)]}"
        )


def _judge_good(verdict: Verdict, ledger: Ledger, stored: dict[str, Any]) -> None:
    waits = []
    for request_id, words in ledger.good.items():
        row = stored.get(str(request_id))
        right = row is not None and row.status == "success" and row.output["response"] == f"echo: {words}"
        verdict.good["answered rightly" if right else f"NOT: {row and (row.status, row.error)}"] += 1
        if right and row is not None:
            waits.append((row.finished_at - row.enqueued_at).total_seconds())
        else:
            verdict.faults.append(f"good request {request_id}: {row}")
    waits.sort()
    if waits:
        verdict.good_seconds = (waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1])


def _judge_log(verdict: Verdict, ledger: Ledger) -> None:
    for line in ledger.log:
        if not _A_LINE.match(line):
            verdict.log["NOT A LINE OF ITS OWN"] += 1
            verdict.faults.append(f"log: no line of its own: {line[:200]!r}")
        elif _CONTROL.search(line):
            verdict.faults.append(f"log: control characters: {line[:200]!r}")
        else:
            verdict.log[_kind(line[24:])] += 1
    if verdict.log.total() > ledger.sent:
        verdict.faults.append(f"{verdict.log.total()} lines in the log for {ledger.sent} messages")


def _kind(words: str) -> str:
    """What varies is left out, so that lines of a kind are one."""
    return _VARIES.sub("…", " ".join(words.split()))[:110]


def table(ledger: Ledger, verdict: Verdict) -> str:
    """What to print: first what must be 0."""
    return "\n".join(f"{name:<34} {value}" for name, value in _rows(ledger, verdict))


def _rows(ledger: Ledger, verdict: Verdict) -> Iterable[tuple[str, str]]:
    yield "seed", str(ledger.seed)
    yield (
        "hostile messages sent",
        f"{ledger.sent:,} in {ledger.seconds:.0f} s, {len(ledger.good):,} good ones among them",
    )
    yield "lost", str(len(verdict.lost))
    yield "doubled", str(len(verdict.doubled))
    yield "other faults", str(len(verdict.faults))
    yield "longest time that nothing moved", f"{ledger.blocked:.1f} s"
    for name, sizes in ledger.memory.items():
        yield f"memory of the {name}", f"{', '.join(map(str, sizes))} MB: after each fifth, at the end"
    yield "requests on the lanes", _counts(verdict.requests)
    yield "requests to pgnexus.enqueue", f"{ledger.taken:,} taken, refused: {_counts(ledger.refused)}"
    yield "results on ai_results", _counts(verdict.results)
    yield "texts that are no jsonb", str(ledger.no_jsonb)
    yield "good requests", _counts(verdict.good)
    yield "their seconds, p50, p99, longest", ", ".join(f"{value:.3f}" for value in verdict.good_seconds)
    yield "results by status", _counts(verdict.statuses)
    for reason, count in verdict.reasons.most_common(12):
        yield "archived", f"{count:>7,}  {reason}"
    for kind, count in verdict.log.most_common(12):
        yield "lines in the logs", f"{count:>7,}  {kind}"
    for fault in [*verdict.lost[:5], *verdict.doubled[:5], *verdict.faults[:10]]:
        yield "FAULT", fault


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counter.most_common()) or "none"
