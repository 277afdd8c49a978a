"""Durable LLM calls and workflows on PostgreSQL.

    async with pgnexus.open() as llm:
        result = await llm.call("simple", "Say hello")

`open` gives a running `LLMService`; `open_sync` the same for code that is not asynchronous.
"""

from pgnexus.app import App, open, open_sync
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.results import JobResult
from pgnexus.caller.service import LLMService
from pgnexus.caller.sync import SyncLLMService
from pgnexus.errors import (
    DatabaseError,
    DatabaseUnavailable,
    InvalidRequest,
    InvalidSettings,
    ModelUnavailable,
    PgnexusError,
    QuotaExceeded,
    RateLimited,
    RequestCancelled,
    RequestError,
    RequestFailed,
    RequestTimeout,
    ResultPending,
    SchemaMismatch,
    ServiceMisused,
    UnknownRequest,
    UnsuitableDatabase,
)
from pgnexus.messages import LLMRequest, LLMResult, ModelInfo, Usage
from pgnexus.settings import Settings

__all__ = [
    "App",
    "DatabaseError",
    "DatabaseUnavailable",
    "InvalidRequest",
    "InvalidSettings",
    "JobResult",
    "LLMRequest",
    "LLMResult",
    "LLMService",
    "ModelInfo",
    "ModelUnavailable",
    "PgnexusError",
    "QuotaExceeded",
    "RateLimited",
    "RequestCancelled",
    "RequestError",
    "RequestFailed",
    "RequestHandle",
    "RequestTimeout",
    "ResultPending",
    "SchemaMismatch",
    "ServiceMisused",
    "Settings",
    "SyncLLMService",
    "UnknownRequest",
    "UnsuitableDatabase",
    "Usage",
    "open",
    "open_sync",
]
