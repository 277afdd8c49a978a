"""Durable LLM calls and workflows on PostgreSQL.

    async with pgnexus.open() as llm:
        result = await llm.call("simple", "Say hello")

`open` gives a running `LLMService`; `open_sync` the same for code that is not asynchronous.

    async with pgnexus.executor(flow) as executor:
        output = await executor.execute(flow, input)

`executor` gives a running `Executor` of flows, which are functions joined by a `Flow`.
"""

from pgnexus.app import App, executor, open, open_sync
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.results import JobResult
from pgnexus.caller.service import LLMService
from pgnexus.caller.sync import SyncLLMService
from pgnexus.caller.workflow import LlmRequest
from pgnexus.errors import (
    DatabaseError,
    DatabaseUnavailable,
    InvalidFlow,
    InvalidOutput,
    InvalidRequest,
    InvalidSchedule,
    InvalidSettings,
    ModelUnavailable,
    NotWaiting,
    PgnexusError,
    QuotaExceeded,
    RateLimited,
    RequestCancelled,
    RequestError,
    RequestFailed,
    RequestTimeout,
    ResultPending,
    RetryLater,
    RunCancelled,
    RunError,
    RunFailed,
    RunPending,
    SchemaMismatch,
    ServiceMisused,
    StepFailed,
    UnknownFlow,
    UnknownRequest,
    UnknownRun,
    UnsuitableDatabase,
)
from pgnexus.flow.actions import Actions
from pgnexus.flow.builder import BuiltFlow, FlowBuilder
from pgnexus.flow.context import Context
from pgnexus.flow.executor import Executor
from pgnexus.flow.graph import Flow
from pgnexus.flow.handle import RunHandle
from pgnexus.flow.later import Later
from pgnexus.flow.prompt import Prompt
from pgnexus.flow.runs import RunEvent, RunStatus, RunSummary, StepStatus
from pgnexus.flow.schedule import Schedule, Schedules
from pgnexus.messages import LLMRequest, LLMResult, ModelInfo, Usage
from pgnexus.settings import Settings

__all__ = [
    "Actions",
    "App",
    "BuiltFlow",
    "Context",
    "DatabaseError",
    "DatabaseUnavailable",
    "Executor",
    "Flow",
    "FlowBuilder",
    "InvalidFlow",
    "InvalidOutput",
    "InvalidRequest",
    "InvalidSchedule",
    "InvalidSettings",
    "JobResult",
    "LLMRequest",
    "LLMResult",
    "LLMService",
    "Later",
    "LlmRequest",
    "ModelInfo",
    "ModelUnavailable",
    "NotWaiting",
    "PgnexusError",
    "Prompt",
    "QuotaExceeded",
    "RateLimited",
    "RequestCancelled",
    "RequestError",
    "RequestFailed",
    "RequestHandle",
    "RequestTimeout",
    "ResultPending",
    "RetryLater",
    "RunCancelled",
    "RunError",
    "RunEvent",
    "RunFailed",
    "RunHandle",
    "RunPending",
    "RunStatus",
    "RunSummary",
    "Schedule",
    "Schedules",
    "SchemaMismatch",
    "ServiceMisused",
    "Settings",
    "StepFailed",
    "StepStatus",
    "SyncLLMService",
    "UnknownFlow",
    "UnknownRequest",
    "UnknownRun",
    "UnsuitableDatabase",
    "Usage",
    "executor",
    "open",
    "open_sync",
]
