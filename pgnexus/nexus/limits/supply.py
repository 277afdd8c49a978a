"""Nexus side, before each provider call: this worker's blocks, filled before they are empty and emptied when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from decimal import Decimal

from pgnexus.nexus.limits.blocks import SWEEP, Block, Grant
from pgnexus.nexus.limits.leases import Leases
from pgnexus.nexus.limits.scopes import Rule
from pgnexus.nexus.limits.waiting import Key

log = logging.getLogger(__name__)

_PRUNE = 3600.0  # seconds
_OUTAGE = 0.25  # seconds until the database is asked again


class Supply:
    """The blocks, and the one task that fetches and returns them.

    ``waiting`` says what all that wait want of one amount; ``on_round`` is called after each answer of the database.
    """

    def __init__(
        self, leases: Leases, waiting: Callable[[Key], Decimal], on_round: Callable[[], None]
    ) -> None:
        self._leases = leases
        self._waiting = waiting
        self._on_round = on_round
        self._blocks: dict[Key, Block] = {}
        # of days and months that are over, or of before this worker was given up
        self._past: list[Block] = []
        self._flagged: set[Block] = set()  # to be asked for at the next opportunity
        self._capped: set[Block] = set()  # others wait for what comes back to these
        self._sweep_at = 0.0
        self.round = 0
        self._round_over = asyncio.Event()
        self._woken = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; until then every block is empty."""
        self._task = asyncio.create_task(self._run(), name="limits")

    async def stop(self) -> None:
        """Give back what is left."""
        self._stopping = True
        self._woken.set()
        if self._task is not None:
            await self._task

    def forget(self) -> None:
        """Use no block any more; what was left of them goes back if they are still ours."""
        self._retire(list(self._blocks.values()))

    def get(self, key: Key) -> Block | None:
        return self._blocks.get(key)

    def block(self, rule: Rule) -> Block:
        """The block of a rule, new and empty if there is none."""
        block = self._blocks.get(rule.key)
        if block is None:
            block = self._blocks[rule.key] = Block(rule)
        return block

    def flag(self, block: Block) -> None:
        """Have it filled as soon as that pays."""
        self._flagged.add(block)
        self._woken.set()

    def returned(self) -> None:
        """Something came back to a block: if other workers wait for it they get it at once."""
        for block in self._capped:
            if block.surplus:
                self.flag(block)

    async def next_round(self, within: float) -> None:
        """Wait for the database's next answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._round_over.wait()

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        prune_at = clock() + _PRUNE
        while True:
            self._woken.clear()
            now = clock()
            if now >= prune_at:
                prune_at = now + _PRUNE
                await self._leases.prune()
            if self._stopping:
                self._retire(list(self._blocks.values()))
            due = self._due(now)
            if due:
                try:
                    await self._renew(due, now)
                except Exception:  # a fault of ours must not end all calls
                    log.exception("limits: failed, goes on")
                    await asyncio.sleep(_OUTAGE)
            if self._stopping:
                return
            if not due:
                await self._until_due(now)

    def _due(self, now: float) -> list[Block]:
        """What the database is to be asked now; what is given back of past days first."""
        sweep = now >= self._sweep_at or self._stopping
        if sweep:
            self._sweep_at = now + SWEEP
            self._past = [block for block in self._past if block.out or block.has_news()]
            for block in list(self._blocks.values()):
                if block.has_news():
                    self._flagged.add(block)
                elif block.is_empty() and not self._waiting(block.rule.key):
                    self._drop(block)
                else:
                    block.sweep(now)  # of which the database need not hear
        due = [block for block in self._flagged if sweep or block.retry_at <= now]
        self._flagged.difference_update(due)
        return [block for block in self._past if sweep and block.has_news()] + due

    async def _until_due(self, now: float) -> None:
        times = [block.retry_at for block in self._flagged]
        if self._blocks or self._past:
            times.append(self._sweep_at)
        pause = None if not times else max(min(times) - now, 0.001)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._woken.wait()

    async def _renew(self, due: list[Block], now: float) -> None:
        self.round += 1
        number = self.round
        waiting = {block: self._waiting(block.rule.key) for block in due}
        answers = await self._leases.renew(due, waiting, now)
        now = asyncio.get_running_loop().time()
        for block in due:
            if block in answers:
                block = self._filled(block, *answers[block], now)
            else:
                block.retry_at, block.most = now + _OUTAGE, None
            block.heard = number
        self._on_round()
        self._round_over.set()
        self._round_over = asyncio.Event()

    def _filled(self, block: Block, grant: Grant, waited: Decimal, now: float) -> Block:
        """The block that the grant belongs to: another one when a new day began, or when this worker was given up."""
        if block.past and not grant.granted:
            block.lost = None
            return block
        moved = block.since is not None and (grant.period, grant.since) != (block.period, block.since)
        if moved or block.past:
            if not block.past:
                self._retire([block])
            block.lost = None
            new = Block(block.rule)
            if self._blocks.setdefault(block.rule.key, new) is not new:
                new.past = True  # nobody waits for it any more
                self._past.append(new)
            block = new
        block.fill(grant, waited, now)
        if grant.cap is None:
            self._capped.discard(block)
        else:
            self._capped.add(block)
        return block

    def _retire(self, blocks: list[Block]) -> None:
        """Take no more from them, and give back what is left of them."""
        for block in blocks:
            block.past = True
            self._drop(block)
            self._past.append(block)

    def _drop(self, block: Block) -> None:
        del self._blocks[block.rule.key]
        self._flagged.discard(block)
        self._capped.discard(block)
