"""The books: every call of the provider's account is in them, at what it told, and results tell their sums."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from chaos.account import ProviderCall
from chaos.ledger.calls import agents
from chaos.ledger.evidence import Evidence, rows
from chaos.settings import BUDGETED_AGENTS, BUDGETS
from pgnexus.db.database import Database

# Calls that are in the books though the provider may never have heard of them: given up, or their worker killed, before
# their first byte was read; or the provider was away, or too busy to answer the door.
_UNHEARD = {"unknown", "cancelled", "provider_unavailable", "provider_timeout"}

Key = tuple[str, str, str]  # mark, vendor, model


def account(seen: Evidence) -> list[str]:
    """Both have the same calls."""
    booked: dict[Key, list[Any]] = defaultdict(list)
    for row in seen.attempts:
        stored = seen.results.get(row.request_id)
        if stored is None:
            return [f"the books have {row.request_id}, which is no request"]
        booked[stored.mark, row.provider, row.model].append(row)
    called: dict[Key, list[ProviderCall]] = defaultdict(list)
    for call in seen.calls:
        called[call.mark, call.vendor, call.model].append(call)
    charged = agents(seen.asked, BUDGETED_AGENTS)
    wrong = []
    for key in sorted(booked.keys() | called.keys()):
        wrong += _compared(key, booked[key], called[key], seen, charged=key[0] in charged or key[1] == "beta")
    return wrong


def _compared(
    key: Key, booked: list[Any], called: list[ProviderCall], seen: Evidence, *, charged: bool
) -> list[str]:
    wrong = []
    missing = len(called) - len(booked)
    may_be_lost = sum(seen.record.note_lost(call, charged=charged) for call in called)
    if missing > may_be_lost:
        wrong.append(f"{key}: {len(called)} calls, {len(booked)} in the books: {_words(booked, called)}")
    if -missing > sum(row.outcome in _UNHEARD for row in booked):
        wrong.append(f"{key}: {len(booked)} in the books, only {len(called)} calls: {_words(booked, called)}")
    # a provider that is killed may have written that it told what nobody heard
    cut = [seen.record.provider_killed(call.began, call.over) for call in called]
    told = Counter((call.prompt_tokens, call.completion_tokens) for call in called if call.told)
    heard = Counter(
        (row.prompt_tokens, row.completion_tokens)
        for row in booked
        if not row.estimated and (row.outcome == "success" or row.completion_tokens)
    )
    huge = Counter(
        (call.prompt_tokens, call.completion_tokens) for call in called if call.what in ("huge", "truncated")
    )
    if heard - told - huge:
        wrong.append(f"{key}: booked {heard - told}, which nobody told: {_words(booked, called)}")
    guessed = sum(row.estimated for row in booked)
    if (told - heard).total() > guessed + may_be_lost + sum(cut):
        wrong.append(f"{key}: told {told - heard}, which nobody booked: {_words(booked, called)}")
    return wrong


def _words(booked: list[Any], called: list[ProviderCall]) -> str:
    books = [
        (row.attempt, row.call, str(row.instance_id)[:4], row.outcome, row.completion_tokens, row.estimated)
        for row in booked
    ]
    calls = [
        (call.worker, call.what, call.completion_tokens, call.told, call.left, round(call.began, 2))
        for call in called
    ]
    return f"books {books}, provider {calls}"


def sums(seen: Evidence) -> list[str]:
    """A result tells the sum of its request's calls; one that was given again and asked nobody costs nothing."""
    wrong = []
    for total in seen.sums:
        row = seen.results.get(total.request_id)
        if row is None:
            continue  # stored between two looks, in a round that did not settle
        told = (row.cost, row.prompt_tokens, row.completion_tokens, row.attempts)
        cost = 0 if (row.cached or row.shared) and total.cost is None else total.cost
        books = (cost, total.prompt_tokens, total.completion_tokens, total.calls)
        if told != books:
            wrong.append(f"{row.request_id} {row.mark} ({row.status}): told {told}, books {books}")
    return wrong


async def budgets(db: Database, seen: Evidence) -> list[str]:
    """What budgets count as spent is what the books say, and not more than they allow."""
    wrong = []
    for (scope, kind), most in BUDGETS.items():
        kind_of, _, name = scope.partition(":")
        own = [
            row
            for row in seen.attempts
            if (row.agent_id == name if kind_of == "agent" else row.provider == "beta")
        ]
        if kind.startswith("usd"):
            books = sum(row.cost or 0 for row in own)
        else:
            books = sum(row.prompt_tokens + row.completion_tokens for row in own)
        [row] = await rows(db, "charged", {"scope": scope, "kind": kind})
        if row.spent != books:
            wrong.append(f"{scope} {kind}: {row.spent} counted as spent, the books say {books}")
        if row.spent > most:
            wrong.append(f"{scope} {kind}: {row.spent} spent of {most}")
    return wrong
