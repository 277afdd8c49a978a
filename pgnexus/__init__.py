"""Durable LLM calls and workflows on PostgreSQL.

    async with pgnexus.open() as llm:
        result = await llm.call("simple", "Say hello")

`open` gives a running `LLMService`; `open_sync` the same for code that is not asynchronous.

    async with pgnexus.executor(flow) as executor:
        output = await executor.execute(flow, input)

`executor` gives a running `Executor` of flows, which are functions joined by a `Flow`.
"""

from pgnexus.app import App, executor, open, open_sync
from pgnexus.caller.chunk import Chunk
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.results import JobResult
from pgnexus.caller.service import LLMService
from pgnexus.caller.stream import ResultStream
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
from pgnexus.flow.built.actions import Actions
from pgnexus.flow.built.builder import BuiltFlow, FlowBuilder
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.graph import Flow
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.prompt import Prompt
from pgnexus.flow.runs.executor import Executor
from pgnexus.flow.runs.handle import RunHandle
from pgnexus.flow.runs.status import RunEvent, RunStatus, RunSummary, StepStatus
from pgnexus.flow.schedules.schedule import Schedule, Schedules
from pgnexus.messages import LLMRequest, LLMResult, ModelInfo, Usage
from pgnexus.settings import Settings

__all__ = [
    "Actions",
    "App",
    "BuiltFlow",
    "Chunk",
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
    "ResultStream",
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
