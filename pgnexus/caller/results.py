"""After T4: the stored outcome of a request, to be recorded, found and searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypedDict, Unpack, cast, get_args
from uuid import UUID

from pgnexus.db.database import Database
from pgnexus.errors import InvalidRequest, error_for
from pgnexus.messages import LLMResult, ResultError, Status, Usage
from pgnexus.storable import check

JobStatus = Literal["scheduled", "enqueued", "success", "failed", "timeout", "cancelled"]

# In ``output`` as they came: a foreign answer may have anything there.
_FLAGS = ("cached", "shared", "estimated")


class Filters(TypedDict, total=False):
    """What `JobResult.search` looks for; what is absent or None matches everything."""

    agent_id: str | None
    task_type: str | None
    status: str | None  # a JobStatus; any other is refused
    workflow: str | None
    since: datetime | None
    until: datetime | None
    limit: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """One row of ``job_results``: a request from the moment it is accepted, with its outcome once it has one.

    ``cost`` is in US dollars, None when unknown; ``duration_ms`` milliseconds on the nexus side; ``input`` the
    request as it was sent, ``output`` the answer (response, message, finish_reason).
    """

    request_id: UUID
    status: JobStatus
    workflow: str
    instance_id: UUID | None
    job_id: str | None
    agent_id: str | None
    task_type: str | None
    complexity: str | None
    priority: str | None
    model: str | None
    provider: str | None
    input: dict[str, Any] | None
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None
    cost: Decimal | None
    duration_ms: int | None
    attempts: int
    retry_of: UUID | None
    enqueued_at: datetime
    deadline: datetime | None
    finished_at: datetime | None
    reasoning_tokens: int | None
    cache_write_tokens: int | None

    @property
    def ended(self) -> bool:
        return self.finished_at is not None

    def to_result(self) -> LLMResult:
        """The result as callers get it; only of a request that has ended."""
        if not self.ended:
            raise ValueError(f"request {self.request_id} is {self.status}: it has no result yet")
        # an answer that is nested too deep to be read comes as text
        output = self.output if isinstance(self.output, dict) else {}
        return LLMResult.model_validate(
            output
            | {name: output.get(name) is True for name in _FLAGS}
            | {
                "request_id": self.request_id,
                "status": cast(Status, self.status),
                "agent_id": self.agent_id,
                "model": self.model,
                "provider": self.provider,
                "usage": Usage(
                    prompt_tokens=self.prompt_tokens or 0,
                    completion_tokens=self.completion_tokens or 0,
                    total_tokens=self.total_tokens or 0,
                    cached_tokens=self.cached_tokens or 0,
                    cache_write_tokens=self.cache_write_tokens or 0,
                    reasoning_tokens=self.reasoning_tokens or 0,
                ),
                "cost": self.cost,
                "latency_ms": self.duration_ms,
                "attempts": self.attempts,
                "error": self.error if isinstance(self.error, dict) else None,
                "timestamp": self.finished_at,
            }
        )

    @classmethod
    async def find(cls, db: Database, request_ids: Sequence[UUID], *, ended: bool = False) -> list[JobResult]:
        """The rows of these requests, in no order; those that are not stored are missing."""
        rows = await db.query("find_job_results", {"request_ids": list(request_ids), "ended": ended})
        return [cls(*row) for row in rows]

    @classmethod
    async def get(cls, db: Database, request_id: UUID) -> JobResult | None:
        found = await cls.find(db, [request_id])
        return found[0] if found else None

    @classmethod
    async def search(cls, db: Database, **filters: Unpack[Filters]) -> list[JobResult]:
        """Rows that match everything given, the newest first, at most ``limit`` (100); times are those of
        acceptance. Raises `InvalidRequest` for what is no filter.
        """
        params = dict.fromkeys(Filters.__annotations__) | {"limit": 100} | dict(filters)
        _check_filters(params)
        return [cls(*row) for row in await db.query("search_job_results", params)]

    @classmethod
    async def record_success(cls, db: Database, result: LLMResult) -> bool:
        """Store a success; False when the request had ended before: the first terminal state wins."""
        return await cls._record(db, result.model_copy(update={"status": "success", "error": None}))

    @classmethod
    async def record_failure(cls, db: Database, request_id: UUID, error: ResultError) -> bool:
        """Store a failure; False when the request had ended before."""
        return await cls._record(db, LLMResult(request_id=request_id, status="failed", error=error))

    @classmethod
    async def record_timeout(
        cls, db: Database, request_id: UUID, message: str = "its deadline passed"
    ) -> bool:
        """Store a timeout; False when the request had ended before."""
        return await cls._record_end(db, request_id, "timeout", message)

    @classmethod
    async def record_cancelled(cls, db: Database, request_id: UUID, message: str = "cancelled") -> bool:
        """Store a cancellation; False when the request had ended before. It stops nobody: see LLMService."""
        return await cls._record_end(db, request_id, "cancelled", message)

    @classmethod
    async def _record_end(cls, db: Database, request_id: UUID, status: Status, message: str) -> bool:
        error = ResultError(type=status, message=message, retryable=error_for(status).retryable)
        return await cls._record(db, LLMResult(request_id=request_id, status=status, error=error))

    @classmethod
    async def _record(cls, db: Database, result: LLMResult) -> bool:
        stamped = result.model_copy(update={"timestamp": result.timestamp or datetime.now(UTC)})
        wire = stamped.model_dump_json(exclude_none=True)
        return bool(await db.query("record_results", {"results": [wire], "notify": True}))


def _check_filters(filters: dict[str, Any]) -> None:
    if unknown := filters.keys() - Filters.__annotations__.keys():
        raise InvalidRequest(
            f"there is no filter {min(unknown)!r}; known are {', '.join(sorted(Filters.__annotations__))}"
        )
    limit, status = filters["limit"], filters["status"]
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 2**31:
        raise InvalidRequest(f"limit: {limit!r:.100} is not a number of rows")
    if status is not None and status not in get_args(JobStatus):
        raise InvalidRequest(f"status: {status!r:.100} is none of {', '.join(get_args(JobStatus))}")
    for name in ("since", "until"):
        if not isinstance(filters[name], datetime | None):
            raise InvalidRequest(f"{name}: {filters[name]!r:.100} is not a datetime")
    for name in ("agent_id", "task_type", "workflow"):
        if not isinstance(filters[name], str | None):
            raise InvalidRequest(f"{name}: {filters[name]!r:.100} is not a text")
        check(filters[name], name)
