"""Nexus side, before each provider call: it passes here, or waits, or is refused for its budget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.nexus.books.attempt import Charge
from pgnexus.nexus.limits.blocks import Block
from pgnexus.nexus.limits.leases import Leases
from pgnexus.nexus.limits.permit import UNLIMITED, Ask, OverBudget, OverLimit, Permit
from pgnexus.nexus.limits.scopes import Rule, Rules
from pgnexus.nexus.limits.supply import Supply
from pgnexus.nexus.limits.waiting import LANES, Key, Takings, Waiter, Waiting
from pgnexus.settings import Settings

__all__ = ["Ask", "Gate", "OverBudget", "OverLimit", "Permit"]

_ONE = Decimal(1)
_ROUND_TRIP = 1.0  # seconds that the least patient waits for the database
_IDLE_RETURNS = 3.0  # seconds until what others leave unused of a budget has come back

Answer = Permit | OverLimit | OverBudget


class Gate:
    """Lets calls pass as far as the limits and budgets of the settings go, for all workers together.

    Calls take from blocks in this process's memory, all that they need or nothing. See `Supply` for where those come
    from, and `Waiting` for who is next.
    """

    def __init__(self, db: Database, settings: Settings, instance_id: UUID) -> None:
        self._rules = Rules(settings)
        self.limited = bool(self._rules)
        self._leases = Leases(db, instance_id)
        self._waiting = Waiting()
        self._supply = Supply(self._leases, self._waiting.amount, self._heard)
        self._impatient: set[Waiter] = set()
        self._serving = False

    async def start(self) -> None:
        """Begin; without limits and budgets nothing runs."""
        if self.limited:
            await self._leases.tell(self._rules)
            self._supply.start()

    async def stop(self) -> None:
        """Give back what is left; after the last call has ended."""
        await self._supply.stop()

    def forget(self) -> None:
        """This worker was given up: what it held is not its own any more, and none of it is used."""
        self._supply.forget()

    async def admit(self, ask: Ask, *, patience: float) -> Answer:
        """Wait up to ``patience`` seconds for room in every scope of the call.

        With no patience the answer comes from what this worker holds, or after one look at the database.
        """
        rules = self._rules.of_call(ask.provider, ask.model, ask.key, ask.agent_id)
        if not rules:
            return UNLIMITED
        estimate = ask.estimate
        needs = {"calls": _ONE, "tokens": Decimal(estimate.tokens), "money": estimate.cost}
        takings: list[tuple[Rule, Decimal]] = []
        for rule in rules:
            need = needs[rule.unit]
            if need is None:
                return _without_price(rule, ask)
            takings.append((rule, need))
        now = asyncio.get_running_loop().time()
        if not (self._waiting and self._waiting.keep_out(LANES[ask.priority], takings)):
            permit = self._permit(takings, now)
            if permit is not None:
                return permit
        return await self._wait(ask, takings, patience, now)

    async def room(self, scope: str, most: int) -> tuple[int, float]:
        """How many more calls of ``scope`` may be made now, at most ``most``; in how many seconds it pays to ask again.

        Of tokens a call is taken to need as many as calls of late. Budgets keep nobody waiting.
        """
        rules = [rule for rule in self._rules.of_scope(scope) if rule.family != "budget"]
        if not rules or most <= 0:
            return most, 0.0
        clock = asyncio.get_running_loop().time
        blocks = [self._supply.block(rule) for rule in rules]
        if self._room(blocks) < most and all(block.retry_at <= clock() for block in blocks):
            for block in blocks:
                block.asked = most * block.usual()
                self._supply.flag(block)
            await self._supply.next_round(_ROUND_TRIP)
            blocks = [self._supply.block(rule) for rule in rules]
        found = min(self._room(blocks), most)
        for block in blocks:
            block.promised += found * block.usual()
        return found, max(max(block.retry_at for block in blocks) - clock(), 0.0)

    def why(self, provider: str, model: str, key: str | None = None) -> str | None:
        """What limit a model is over just now, as far as this worker knows."""
        now = asyncio.get_running_loop().time()
        for rule in self._rules.of_call(provider, model, key, None):
            block = self._supply.get(rule.key)
            if block is not None and now < block.short_until:
                return f"{rule.scope} is over its limit of {rule.amount:f} {rule.kind}"
        return None

    def _room(self, blocks: Sequence[Block]) -> int:
        return min(block.room(self._waiting.amount(block.rule.key)) for block in blocks)

    def _permit(self, takings: Takings, now: float) -> Permit | None:
        """Take all, or nothing when something lacks."""
        found: list[tuple[Block, Decimal]] = []
        for rule, need in takings:
            block = self._supply.get(rule.key)
            if block is None or not block.can_give(need, now):
                return None
            found.append((block, need))
        charges: list[Charge] = []
        for block, need in found:
            block.take(need)
            if block.is_low(now):
                self._supply.flag(block)
            if block.rule.family == "budget" and block.period is not None:
                charges.append(Charge(block.rule.scope, block.rule.kind, block.period, need))
        return Permit(tuple(found), tuple(charges), self._freed)

    def _freed(self) -> None:
        """A call has ended: others may go."""
        self._supply.returned()
        if self._waiting and not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    async def _wait(self, ask: Ask, takings: Takings, patience: float, now: float) -> Answer:
        loop = asyncio.get_running_loop()
        waiter = Waiter(ask, takings, now, patience, self._supply.round, loop.create_future())
        self._waiting.add(waiter)
        self._serve()
        if patience > 0:
            self._set_timer(waiter, patience)
        else:
            self._lose_patience(waiter)
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            if waiter.answer.cancelled():
                self._waiting.remove(waiter)
                self._freed()  # it may have kept others out
            elif isinstance(answer := waiter.answer.result(), Permit):
                answer.cancel()
            raise
        finally:
            self._impatient.discard(waiter)
            if waiter.timer is not None:
                waiter.timer.cancel()

    def _set_timer(self, waiter: Waiter, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        waiter.timer = loop.call_later(seconds, self._lose_patience, waiter)

    def _lose_patience(self, waiter: Waiter) -> None:
        """It will not wait any longer, except for the database's answer, or for what others leave of a budget."""
        if waiter.answer.done():
            return
        now = asyncio.get_running_loop().time()
        waited, block = now - waiter.since, self._lacked(waiter, now)
        if block.rule.family == "budget" and block.most is not None and waiter.patience > 0:
            if waited < _IDLE_RETURNS:
                self._set_timer(waiter, _IDLE_RETURNS - waited)
            else:
                self._leave(waiter, _spent(block, waiter))
            return
        known = block.heard > waiter.round or (block.retry_at > now and block.rule.family != "budget")
        if known or waited >= waiter.patience + _ROUND_TRIP:
            self._leave(waiter, OverLimit(block.rule.scope, max(block.retry_at - now, 0.05)))
        elif waiter not in self._impatient:
            self._impatient.add(waiter)
            self._set_timer(waiter, waiter.patience + _ROUND_TRIP - waited)

    def _lacked(self, waiter: Waiter, now: float) -> Block:
        """What keeps it waiting: its own lack, else that of those before it."""
        blocks = [(self._supply.block(rule), need) for rule, need in waiter.takings]
        lacking = [block for block, need in blocks if not block.can_give(need, now)]
        return (lacking or [block for block, _ in blocks if block.need] or [blocks[0][0]])[0]

    def _leave(self, waiter: Waiter, answer: Answer) -> None:
        self._waiting.remove(waiter)
        waiter.answer.set_result(answer)
        self._freed()  # it may have kept others out

    def _heard(self) -> None:
        """The database has answered."""
        self._serve()
        for waiter in tuple(self._impatient):
            self._lose_patience(waiter)

    def _serve(self) -> None:
        """Let those pass for whom there is room; note what the first of the others lack."""
        self._serving = False
        now = asyncio.get_running_loop().time()
        for key in self._waiting.wanted():
            if (block := self._supply.get(key)) is not None:
                block.need = Decimal(0)
        self._waiting.serve(lambda waiter, lacking: self._served(waiter, lacking, now))

    def _served(self, waiter: Waiter, lacking: set[Key], now: float) -> bool:
        kept_out = any(rule.key in lacking for rule, _ in waiter.takings)
        if waiter.answer.done():
            return False  # it is about to leave by itself
        if not kept_out and (permit := self._permit(waiter.takings, now)) is not None:
            waiter.answer.set_result(permit)
            return True
        for rule, need in waiter.takings:
            block = self._supply.block(rule)
            if block.can_give(need, now):
                continue
            known = block.most is not None and block.heard > waiter.round
            if known and block.most is not None and need > block.left + block.most:
                waiter.answer.set_result(_spent(block, waiter))
                return True
            if rule.key not in lacking:
                lacking.add(rule.key)
                block.need = max(need - max(block.left, Decimal(0)), Decimal(0))
                self._supply.flag(block)
        return False


def _without_price(rule: Rule, ask: Ask) -> OverBudget:
    ref = f"{ask.provider}/{ask.model}"
    return OverBudget(
        rule.scope,
        f'{rule.scope} has {rule}, and {ref} has no known price: set models."{ref}".input_price and output_price',
    )


def _spent(block: Block, waiter: Waiter) -> OverBudget:
    need = next(need for rule, need in waiter.takings if rule.key == block.rule.key)
    held = max(block.rule.amount - block.spent - block.left - (block.most or Decimal(0)), Decimal(0))
    return OverBudget(
        block.rule.scope,
        f"{block.rule.scope} has {block.rule}: {_plain(block.spent)} is spent, {_plain(held)} is set aside "
        f"for calls under way, and this call may take {_plain(need)}",
    )


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
