"""Every error a caller, an operator or a provider can meet: one tree.

    PgnexusError
    ├── InvalidRequest            the input is wrong; nothing was stored
    ├── InvalidSettings           a setting is wrong; names it
    ├── ServiceMisused            not started, stopped, after a fork or from another event loop
    ├── RequestError              one stored request did not end in success; has request_id and result
    │   ├── RequestFailed         any failure that has no name of its own below
    │   ├── RequestTimeout        its deadline passed
    │   ├── RequestCancelled      somebody cancelled it
    │   ├── ModelUnavailable      no candidate can serve it (unknown model, no key, provider down)
    │   ├── RateLimited           every candidate's rate limit was met, and the retries are used up
    │   └── QuotaExceeded         a budget or a provider's quota is spent
    ├── ResultPending             the wait ended before the request did; it goes on (also a TimeoutError)
    ├── UnknownRequest            no request of that id is stored
    ├── InvalidFlow               a flow cannot be built: a cycle, an unknown dependency, a bad slug, …
    ├── InvalidSchedule           a schedule makes no sense; says which field
    ├── UnknownFlow               no flow of that name is compiled in this database, or known to this process
    ├── UnknownRun                no run of that id is stored
    ├── NotWaiting                a signal, or an answer, for a step that does not wait for one
    ├── RunError                  one run did not end in success; has run_id
    │   ├── RunFailed             a step failed for good; the message names it and its error
    │   └── RunCancelled          somebody cancelled it
    ├── RunPending                the wait ended before the run did; it goes on (also a TimeoutError)
    ├── StepError                 for handlers to raise, and what a step's output may be refused with
    │   ├── StepFailed            no further attempt would help: the task fails at once
    │   ├── RetryLater            try again after its delay
    │   └── InvalidOutput         an output that is not JSON, or over the limit
    ├── DatabaseError
    │   ├── DatabaseUnavailable   nobody answers at the URL, or the connection broke
    │   ├── SchemaMismatch        the schema is missing, older or newer than this code
    │   └── UnsuitableDatabase    a database that cannot work for us (encoding, standby, version, …)
    └── ProviderError             one call to one vendor; only the nexus side sees these
        ├── AuthenticationFailed  ├── BadRequest         ├── ContentFiltered
        ├── ContextTooLong        ├── ModelNotFound      ├── QuotaSpent
        ├── TooManyRequests       ├── ProviderUnavailable├── ProviderTimeout
        ├── BadAnswer             rubbish, or an answer cut short
        ├── AnswerTooLong         more than max_message_bytes: the next one would be as long
        ├── NoCandidate           no model and provider may be asked at all
        ├── BudgetSpent           a budget of our own is spent; nobody was asked
        └── InternalFailure       a fault of our own code while it called; its log has the traceback

Each class says with ``retryable`` whether the same request may succeed when it is sent again, and with
``type`` the name that stands for it on the wire (``error.type`` of a result).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from uuid import UUID

    from pgnexus.messages import LLMResult, Usage


class PgnexusError(Exception):
    """The root of the tree."""

    retryable: ClassVar[bool] = False
    type: ClassVar[str] = "internal"


class InvalidRequest(PgnexusError, ValueError):
    """The input is wrong and says where; nothing was stored."""

    type = "invalid_request"


class InvalidSettings(PgnexusError, ValueError):
    """A setting is missing or wrong; the message names it and where it came from."""

    type = "invalid_settings"


class ServiceMisused(PgnexusError, RuntimeError):
    """A service is used before its start, after its stop, after a fork or from another event loop."""

    type = "service_misused"


class RequestError(PgnexusError):
    """A stored request ended without success. ``result`` is the stored `LLMResult`."""

    def __init__(self, message: str, *, request_id: UUID, result: LLMResult | None = None) -> None:
        super().__init__(f"request {request_id}: {message}")
        self.request_id = request_id
        self.result = result


class RequestFailed(RequestError):
    """The request failed, and no narrower class fits; ``result.error`` has the type."""

    type = "failed"


class RequestTimeout(RequestError, TimeoutError):
    """The request's deadline passed before an answer came."""

    retryable = True
    type = "timeout"


class RequestCancelled(RequestError):
    """The request was cancelled."""

    type = "cancelled"


class ModelUnavailable(RequestError):
    """No candidate could serve the request: unknown model, no key, or every provider down."""

    retryable = True
    type = "model_unavailable"


class RateLimited(RequestError):
    """Every candidate refused for its rate limit until the attempts were used up."""

    retryable = True
    type = "rate_limited"


class QuotaExceeded(RequestError):
    """A budget, or the quota of the account at the provider, is spent."""

    type = "quota_exceeded"


class ResultPending(PgnexusError, TimeoutError):
    """The wait is over, the request is not: it goes on, and its result can be had later."""

    retryable = True
    type = "pending"

    def __init__(self, request_id: UUID, waited: float) -> None:
        super().__init__(f"request {request_id}: no result within {waited:g} s; it is still under way")
        self.request_id = request_id


class UnknownRequest(PgnexusError, LookupError):
    """No request of that id is stored."""

    type = "unknown_request"

    def __init__(self, request_id: UUID | str) -> None:
        super().__init__(f"request {request_id}: not stored here")
        self.request_id = request_id


class InvalidFlow(PgnexusError, ValueError):
    """A flow cannot be built or compiled; the message names the step at fault."""

    type = "invalid_flow"


class InvalidSchedule(PgnexusError, ValueError):
    """A schedule makes no sense; the message names the field at fault."""

    type = "invalid_schedule"


class UnknownFlow(PgnexusError, LookupError):
    """No flow of that name is compiled in this database, or known to this process."""

    type = "unknown_flow"


class UnknownRun(PgnexusError, LookupError):
    """No run of that id is stored."""

    type = "unknown_run"


class NotWaiting(PgnexusError):
    """A signal, or an answer, for a step that does not wait for one; the message says what state it is in."""

    type = "not_waiting"


class RunError(PgnexusError):
    """A run ended without success."""

    def __init__(self, message: str, *, run_id: UUID) -> None:
        super().__init__(f"run {run_id}: {message}")
        self.run_id = run_id


class RunFailed(RunError):
    """A step of the run failed for good; the message names the step and its error."""

    type = "run_failed"


class RunCancelled(RunError):
    """The run was cancelled."""

    type = "run_cancelled"


class RunPending(PgnexusError, TimeoutError):
    """The wait is over, the run is not: it goes on, and its output can be had later."""

    retryable = True
    type = "run_pending"

    def __init__(self, run_id: UUID, waited: float) -> None:
        super().__init__(f"run {run_id}: not ended within {waited:g} s; it is still under way")
        self.run_id = run_id


class StepError(PgnexusError):
    """How a handler says what shall become of its task; any other exception means: try again later."""

    type = "step_error"


class StepFailed(StepError):
    """No further attempt would help: the task fails at once, whatever attempts are left."""

    type = "step_failed"


class RetryLater(StepError):
    """The task is to be tried again in ``delay`` seconds; the attempt counts."""

    retryable = True
    type = "retry_later"

    def __init__(self, message: str, *, delay: float) -> None:
        super().__init__(message)
        self.delay = delay


class InvalidOutput(StepFailed):
    """A step's output is not JSON, or is larger than max_message_bytes; a new attempt would be as bad."""

    type = "invalid_output"


class DatabaseError(PgnexusError):
    """Something between us and the database."""

    type = "database"


class DatabaseUnavailable(DatabaseError):
    """Nobody answers at the URL (named without its password), or the connection broke."""

    retryable = True
    type = "database_unavailable"


class SchemaMismatch(DatabaseError):
    """The schema is missing, older or newer than this code; the message says what to run."""

    type = "schema_mismatch"


class UnsuitableDatabase(DatabaseError):
    """The server or the connection cannot do what we need; the message says what to change."""

    type = "unsuitable_database"


class ProviderError(PgnexusError):
    """One call to one vendor ended without a completion.

    ``retry_after`` is the wait in seconds that the vendor asked for, or None; ``status`` its HTTP
    status, or None when there was none; ``usage`` what it counted for an answer that is of no use, or None.
    """

    type = "provider_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.usage = usage


class AuthenticationFailed(ProviderError):
    """The vendor refuses the key (401, 403)."""

    type = "authentication_failed"


class BadRequest(ProviderError):
    """The vendor refuses the request itself (400, 422)."""

    type = "bad_request"


class ContentFiltered(ProviderError):
    """The vendor's content policy refuses the prompt."""

    type = "content_filtered"


class ContextTooLong(ProviderError):
    """The prompt does not fit into the model's context."""

    type = "context_too_long"


class ModelNotFound(ProviderError):
    """The vendor does not know the model (404)."""

    type = "model_not_found"


class QuotaSpent(ProviderError):
    """The account at the vendor has no credit left (402, or 429 with insufficient_quota)."""

    type = "quota_exceeded"


class TooManyRequests(ProviderError):
    """The vendor's rate limit (429)."""

    retryable = True
    type = "rate_limited"


class ProviderUnavailable(ProviderError):
    """The vendor is down, overloaded (5xx, 529) or cannot be reached."""

    retryable = True
    type = "provider_unavailable"


class ProviderTimeout(ProviderError):
    """The vendor did not answer in time."""

    retryable = True
    type = "provider_timeout"


class BadAnswer(ProviderError):
    """The vendor answered with something that is not a whole completion."""

    retryable = True
    type = "bad_answer"


class AnswerTooLong(ProviderError):
    """The vendor's answer is larger than max_message_bytes; asked again it would be paid for again."""

    type = "answer_too_long"


class NoCandidate(ProviderError):
    """No model and provider may be asked: unknown, or without a key; says which and what to do."""

    type = "model_unavailable"


class BudgetSpent(ProviderError):
    """A budget of the settings has no room for the call; nobody was asked. Names the scope."""

    type = "quota_exceeded"


class InternalFailure(ProviderError):
    """A fault in pgnexus itself while it called a vendor; the log has the traceback."""

    type = "internal"


_BY_TYPE: dict[str, type[RequestError]] = {
    "timeout": RequestTimeout,
    "cancelled": RequestCancelled,
    "model_unavailable": ModelUnavailable,
    "model_not_found": ModelUnavailable,
    "provider_unavailable": ModelUnavailable,
    "authentication_failed": ModelUnavailable,
    "rate_limited": RateLimited,
    "quota_exceeded": QuotaExceeded,
}


def error_for(type_name: str) -> type[RequestError]:
    """The class a caller gets for the ``error.type`` of a result; `RequestFailed` for unknown ones.

    >>> error_for("rate_limited").__name__
    'RateLimited'
    """
    return _BY_TYPE.get(type_name, RequestFailed)
