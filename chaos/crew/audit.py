"""What must be true when all is over: the callers' ledgers, the provider's account and the database side by side."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

_SQL = Path(__file__).parent / "sql"
Window = tuple[float, float]


@dataclass
class Book:
    """What all callers know."""

    asked: set[str] = field(default_factory=set)
    accepted: dict[str, float] = field(default_factory=dict)  # when it was first told so
    taken_back: set[str] = field(default_factory=set)
    told: dict[str, set[tuple[str, str | None]]] = field(default_factory=lambda: defaultdict(set))
    took: list[tuple[float, float]] = field(default_factory=list)  # of each acceptance: when, and how long
    told_at: list[float] = field(default_factory=list)
    unsure: int = 0
    faults: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, ledgers: Iterable[Path]) -> Book:
        book = cls()
        for ledger in ledgers:
            for line in _whole_lines(ledger):
                book._take(line, ledger.stem)
        return book

    def _take(self, line: dict[str, Any], caller: str) -> None:
        ids: list[str] = line["ids"]
        match line["what"]:
            case "asked":
                self.asked.update(ids)
                if line["kind"] == "taken back":
                    self.taken_back.update(ids)
            case "accepted":
                self.took.append((line["at"], line["took"]))
                for one in ids:
                    self.accepted.setdefault(one, line["at"])
            case "told":
                self.told[ids[0]].add((line["status"], line.get("text")))
                self.told_at.append(line["at"])
            case "unsure":
                self.unsure += 1
            case "fault":
                self.faults.append(f"{caller}: {line['kind']}: {line['error']}")


@dataclass
class Call:
    """One call as the provider saw it."""

    worker: str
    mark: str
    began: float
    ended: float | None = None
    whole: bool = False


def read_account(path: Path) -> dict[str, list[Call]]:
    """The provider's calls by mark, in their order."""
    calls: dict[str, Call] = {}
    for line in _whole_lines(path):
        if "began" in line:
            calls[line["call"]] = Call(line["worker"], line["mark"], line["began"])
        else:
            call = calls[line["call"]]
            call.ended, call.whole = line["ended"], line["whole"]
    by_mark: dict[str, list[Call]] = defaultdict(list)
    for call in sorted(calls.values(), key=lambda one: one.began):
        by_mark[call.mark].append(call)
    return by_mark


@dataclass
class Verdict:
    """The ledger of a run. ``wrong`` is what must not be; a run without it has passed."""

    accepted: int
    results: Counter[str]
    lost: list[str]
    doubled: list[str]
    stuck: list[str]
    faults: list[str]
    again: Counter[str]  # why calls were made more than once
    calls: int

    @property
    def wrong(self) -> list[str]:
        unexplained = [
            f"{n} calls made again: {why}" for why, n in self.again.items() if why == "unexplained"
        ]
        return [
            *(f"lost: {one}" for one in self.lost),
            *(f"doubled: {one}" for one in self.doubled),
            *(f"stuck: {one}" for one in self.stuck),
            *self.faults,
            *unexplained,
        ]

    def lines(self) -> list[str]:
        results = ", ".join(f"{n} {status}" for status, n in sorted(self.results.items()))
        again = ", ".join(f"{n} {why}" for why, n in sorted(self.again.items())) or "none"
        return [
            f"accepted {self.accepted}, results {sum(self.results.values())} ({results})",
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, stuck {len(self.stuck)}, faults {len(self.faults)}",
            f"provider calls {self.calls}, made again: {again}",
        ]


def audit(
    url: str, book: Book, account: Path, deaths: dict[str, float], outages: Sequence[Window]
) -> Verdict:
    """Lay everything side by side. ``deaths`` tells when workers were killed, ``outages`` when no lease was kept."""
    with psycopg.connect(url, row_factory=namedtuple_row) as connection:
        rows = {row.request_id: row for row in _rows(connection, "results")}
        stuck = [f"{row.what}: {row.n}" for row in _rows(connection, "left")]
        unbooked = _rows(connection, "unbooked")
        failed = {row.request_id: int(row.n) for row in _rows(connection, "failed_calls")}
    calls = read_account(account)
    faults = [*book.faults, *(f"{row.request_id} has an answer that is not in the books" for row in unbooked)]
    faults += [f"{one} was asked by nobody" for one in rows.keys() - book.asked]
    faults += [f"{one} was taken back, and is there" for one in rows.keys() & book.taken_back]
    for one, row in rows.items():
        if row.status == "success" and f" to {one}: " not in (row.response or ""):
            faults.append(f"{one} has an answer to something else: {row.response!r:.100}")
    return Verdict(
        accepted=len(book.accepted),
        results=Counter(row.status for row in rows.values() if row.ended),
        lost=[one for one in book.accepted if one not in rows],
        doubled=_told_otherwise(book, rows),
        stuck=stuck + [f"{one} is {row.status}" for one, row in rows.items() if not row.ended],
        faults=faults,
        again=_again(calls, failed, deaths, outages),
        calls=sum(map(len, calls.values())),
    )


def _told_otherwise(book: Book, rows: dict[str, Any]) -> list[str]:
    """Requests of which somebody was told another end than the one that is stored."""
    wrong = []
    for one, ends in book.told.items():
        row = rows.get(one)
        stored = (row.status, row.response) if row else None
        for status, text in ends:
            same = stored == (status, text) or (
                status == "error" and row is not None and row.status != "success"
            )
            if not same:
                wrong.append(f"{one}: told {status} {text!r:.60}, stored {stored!r:.90}")
    return wrong


def _again(
    calls: dict[str, list[Call]], failed: dict[str, int], deaths: dict[str, float], outages: Sequence[Window]
) -> Counter[str]:
    """Why requests were called for more than once, by what came before each further call."""
    why: Counter[str] = Counter()
    for mark, of_one in calls.items():
        too_late = failed.get(mark, 0) - sum(not call.whole for call in of_one)
        for before, call in pairwise(of_one):
            died = deaths.get(before.worker)
            if not before.whole:
                gone = died is not None and died < call.began
                why["the worker or the wire was gone" if gone else "the answer was none"] += 1
            elif died is not None and died < call.began:
                why["its worker was killed before it stored the answer"] += 1
            elif any(start < call.began and before.began < end for start, end in outages):
                why["its worker lost the database for longer than its lease"] += 1
            elif too_late > 0:
                too_late -= 1
                why["the answer came too late"] += 1
            else:
                why["unexplained"] += 1
    return why


@cache
def _query(name: str) -> Any:
    return (_SQL / f"{name}.sql").read_text()


def _rows(connection: psycopg.Connection[Any], name: str) -> list[Any]:
    return connection.execute(_query(name)).fetchall()


def wait_until_ended(url: str, patience: float) -> None:
    """Until every result is there, for so many seconds at most: what does not end is the audit's to tell."""
    deadline = time.monotonic() + patience
    with psycopg.connect(url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            if connection.execute(_query("unended")).fetchone() == (0,):
                return
            time.sleep(0.2)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """A last line that a kill cut off is passed over."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
