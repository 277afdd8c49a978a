"""Nexus side, before each provider call: blocks fetched from the database, all that are wanted in one statement."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

import psycopg
from pydantic_core import to_json

from pgnexus.db.database import Database
from pgnexus.errors import DatabaseUnavailable
from pgnexus.nexus.limits.blocks import Block, Grant
from pgnexus.nexus.limits.scopes import Rules
from pgnexus.printable import one_line

log = logging.getLogger(__name__)


class Leases:
    """What this instance has in the database; one call at a time."""

    def __init__(self, db: Database, instance_id: UUID) -> None:
        self._db = db
        self._instance_id = instance_id
        self._serial = 0
        self._away = False

    async def tell(self, rules: Rules) -> None:
        """Publish what the settings say, for those who look."""
        told = [
            {"scope": scope, "kind": kind, "amount": amount} for scope, kind, amount in rules.configured()
        ]
        params = {"instance_id": self._instance_id, "limits": to_json(told).decode()}
        await self._db.query("configure_limits", params)

    async def prune(self) -> None:
        """Delete what nobody looks at any more."""
        try:
            await self._db.query("prune_limits")
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.debug("limits: not pruned: %s", one_line(error))

    async def renew(
        self, blocks: Sequence[Block], waiting: Mapping[Block, Decimal], now: float
    ) -> dict[Block, tuple[Grant, Decimal]]:
        """Give back and take for these blocks; what each was granted, and what it had lacked.

        Empty when the database is away, or takes this instance for dead: nothing was granted then.
        """
        self._serial += 1
        items = [block.item(waiting.get(block, Decimal(0)), now) for block in blocks]
        params = {
            "instance_id": self._instance_id,
            "serial": self._serial,
            "wants": to_json(items).decode(),
        }
        try:
            rows = await self._db.query("lease_limits", params)
        except (DatabaseUnavailable, psycopg.Error) as error:
            if not self._away:
                log.warning("limits: calls wait until the database has counted them: %s", one_line(error))
            self._away = True
            for block, item in zip(blocks, items, strict=True):
                block.unanswered(self._serial, item["give"])
            return {}
        self._away = False
        if not rows:
            for block, item in zip(blocks, items, strict=True):
                block.refused(item["give"])
            return {}
        found: dict[Block, tuple[Grant, Decimal]] = {}
        for row in rows:
            grant = Grant(*row)
            block = blocks[grant.n - 1]
            found[block] = (grant, items[grant.n - 1]["waiting"])
        return found
