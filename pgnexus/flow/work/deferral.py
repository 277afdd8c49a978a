"""Behind a handler that answers "later": what there is to be waited for, by kinds.

The engine knows only tokens and deadlines. What shall happen so that somebody completes the task, such as
putting an LLM request on its queue, is a kind's matter, and done in the transaction that defers the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from pgnexus.db.connection import Connection


@dataclass(frozen=True, slots=True)
class Waiting:
    """One task that waits from now on; whoever has the token completes it.

    ``worker_id`` is the instance that ran its handler, ``flow`` its flow's name.
    """

    token: UUID
    worker_id: UUID
    run_id: UUID
    flow: str
    step: str
    task_index: int
    is_map: bool
    details: Any
    deadline: datetime | None


class Kind(Protocol):
    """One thing that tasks wait for.

    ``grace``: the seconds past a task's own deadline in which its answer, or word that there is none, may come.
    """

    grace: float

    def keeps(self, details: Any) -> Any:
        """What of the details the task's row keeps while it waits."""
        ...

    async def ask(self, connection: Connection, waiting: Sequence[Waiting]) -> None:
        """See to it that these tasks are answered; in the transaction that defers them."""
        ...


class Signal:
    """Somebody outside will say it: nothing to do until then."""

    grace = 0.0

    def keeps(self, details: Any) -> Any:
        return details

    async def ask(self, connection: Connection, waiting: Sequence[Waiting]) -> None:
        pass


Kinds = Mapping[str, Kind]
