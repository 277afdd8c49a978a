"""The audit of failovers and upgrades finds what must not be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pgnexus
from chaos.crew.audit import Book, Verdict, audit

GONE = "01a204f4-0000-7000-8000-000000000001"


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def audited(url: str, tmp_path: Path, kind: str, status: str) -> tuple[str, Verdict]:
    """One request that nobody serves, and one that was accepted and is gone; what a caller says of the first."""
    async with pgnexus.open(nexus=False, database_url=url) as llm:
        there = str((await llm.enqueue("simple", "Hello")).request_id)
    ledger = write(
        tmp_path / "caller1.jsonl",
        {"what": "asked", "ids": [there, GONE], "at": 1.0, "kind": kind},
        {"what": "accepted", "ids": [there, GONE], "at": 2.0, "took": 0.1},
        {"what": "told", "ids": [there], "at": 3.0, "status": status, "text": "an answer"},
    )
    return there, audit(url, Book.read([ledger]), write(tmp_path / "account.jsonl"), {}, [])


async def test_lost_stuck_and_told_otherwise(database_url: str, tmp_path: Path) -> None:
    there, verdict = await audited(database_url, tmp_path, "one", "success")
    assert verdict.lost == [GONE]
    assert f"{there} is enqueued" in verdict.stuck
    assert any("messages on ai_requests" in line for line in verdict.stuck)
    [doubled] = verdict.doubled
    assert doubled.startswith(f"{there}: told success")
    assert not verdict.faults


async def test_what_was_taken_back_is_not_there(database_url: str, tmp_path: Path) -> None:
    there, verdict = await audited(database_url, tmp_path, "taken back", "success")
    assert f"{there} was taken back, and is there" in verdict.faults


def calls(*workers: str) -> list[dict[str, Any]]:
    """An account of calls for one request, each answered in full, a second from one to the next."""
    lines: list[dict[str, Any]] = []
    for number, worker in enumerate(workers):
        lines += [
            {"call": f"{number}", "worker": worker, "mark": "m", "began": float(number)},
            {"call": f"{number}", "ended": number + 0.5, "whole": True},
        ]
    return lines


def test_each_call_made_again_is_explained_or_not(database_url: str, tmp_path: Path) -> None:
    account = write(tmp_path / "account.jsonl", *calls("up1", "up2", "up2", "up3"))
    verdict = audit(database_url, Book(), account, {"up1": 0.7}, [(1.2, 1.8)])
    assert verdict.again == Counter(
        {
            "its worker was killed before it stored the answer": 1,
            "its worker lost the database for longer than its lease": 1,
            "unexplained": 1,
        }
    )
    assert verdict.wrong == ["1 calls made again: unexplained"]
