"""Beside a handler: what it may know of its task, and do while it runs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import timedelta
from typing import Any, TypeVar, overload
from uuid import UUID

from psycopg import AsyncConnection

from pgnexus.errors import ServiceMisused, StepFailed
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.values import Codec, Misfit, dump
from pgnexus.messages import new_request_id

T = TypeVar("T")

FlowInputReader = Callable[[], Awaitable[Any]]
ProgressReporter = Callable[[str], Awaitable[bool]]

_log = logging.getLogger("pgnexus.flow.handlers")


class _TaskLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return f"run {kwargs['extra']['run_id']} step {kwargs['extra']['step']}: {msg}", kwargs


class Context:
    """One attempt at one task. A handler gets it in the parameter that is annotated with it.

    The worker gives what reaches the database: ``flow_input`` reads the run's input, ``progress`` takes a
    JSON text and says whether the task is still this worker's. Without them it is a context for unit tests:

    >>> Context(step="review", attempt=2).attempt
    2
    """

    def __init__(
        self,
        *,
        run_id: UUID | None = None,
        flow: str = "test",
        step: str = "test",
        task_index: int = 0,
        attempt: int = 1,
        flow_input: FlowInputReader | None = None,
        progress: ProgressReporter | None = None,
        connection: AsyncConnection[Any] | None = None,
    ) -> None:
        self.run_id = run_id or new_request_id()
        self.flow = flow
        self.step = step
        self.task_index = task_index
        self.attempt = attempt
        self._flow_input = flow_input
        self._progress = progress
        self._connection = connection
        extra: dict[str, object] = {"run_id": str(self.run_id), "flow": flow, "step": step}
        extra |= {"task_index": task_index, "attempt": attempt}
        self.log = _TaskLog(_log, extra)

    @overload
    async def flow_input(self) -> Any: ...
    @overload
    async def flow_input(self, as_type: type[T]) -> T: ...
    async def flow_input(self, as_type: Any = Any) -> Any:
        """The run's input: decoded JSON, or ``as_type`` made of it."""
        if self._flow_input is None:
            raise ServiceMisused(f"step {self.step}: this context has no run; make it with flow_input=…")
        try:
            return Codec(as_type).decode(await self._flow_input(), "input")
        except Misfit as error:
            raise StepFailed(f"step {self.step}: the run's input does not fit: {error}") from None

    async def progress(self, value: Any) -> bool:
        """Store how far the task is, any JSON value; a sign of life, too.

        False says that the task is no longer this worker's: what the handler returns will be refused.
        """
        text = dump(value, f"step {self.step}: progress")
        return True if self._progress is None else await self._progress(text)

    def later(
        self,
        *,
        timeout: timedelta | float,
        kind: str = "signal",
        details: dict[str, Any] | None = None,
        token: UUID | None = None,
    ) -> Later:
        """What a handler returns when somebody else will bring its output, within ``timeout`` (seconds)."""
        return Later(timeout, kind, details, token)

    @property
    def connection(self) -> AsyncConnection[Any]:
        """The connection in which the step's completion will be committed; leave committing to the worker."""
        if self._connection is None:
            raise ServiceMisused(
                f"step {self.step}: only a transactional step has a connection; "
                "write @flow.step(transactional=True)"
            )
        return self._connection
