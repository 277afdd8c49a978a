"""Under every verb: the exit codes that scripts can rely on, and the one for each error.

0    it worked
1    it failed; `batch`, `cancel`: some did, or no OUT; `doctor`: mend something; `flow signal`, `retry`: refused
2    wrong usage, settings, request, flow or schedule; nothing was stored
3    the database: not there, without its schema, or unsuitable
4    no result in time: the request's deadline passed, or the wait is over and the request or run goes on
5    the request or run was cancelled
6    no such request, flow, run or schedule
70   a fault in pgnexus itself
130  interrupted by Ctrl-C or SIGTERM; what was accepted stays accepted
"""

from __future__ import annotations

from typing import Final

from pgnexus.cli.batch_files import UnwritableOutput
from pgnexus.cli.flow.input import UnknownSchedule
from pgnexus.errors import (
    DatabaseError,
    InvalidFlow,
    InvalidRequest,
    InvalidSchedule,
    InvalidSettings,
    NotWaiting,
    RequestCancelled,
    RequestError,
    RequestTimeout,
    ResultPending,
    RunCancelled,
    RunError,
    RunPending,
    StepError,
    UnknownFlow,
    UnknownRequest,
    UnknownRun,
)
from pgnexus.messages import Status

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
DATABASE: Final = 3
TIMEOUT: Final = 4
CANCELLED: Final = 5
UNKNOWN: Final = 6
INTERNAL: Final = 70
INTERRUPTED: Final = 130

# The first class that fits decides.
_BY_ERROR: Final[tuple[tuple[type[Exception], int], ...]] = (
    (InvalidRequest, USAGE),
    (InvalidSettings, USAGE),
    (InvalidFlow, USAGE),
    (InvalidSchedule, USAGE),
    (DatabaseError, DATABASE),
    (RequestTimeout, TIMEOUT),
    (ResultPending, TIMEOUT),
    (RunPending, TIMEOUT),
    (RequestCancelled, CANCELLED),
    (RunCancelled, CANCELLED),
    (UnknownRequest, UNKNOWN),
    (UnknownFlow, UNKNOWN),
    (UnknownRun, UNKNOWN),
    (UnknownSchedule, UNKNOWN),
    (RequestError, FAILED),
    (RunError, FAILED),
    (NotWaiting, FAILED),
    (StepError, FAILED),
    (UnwritableOutput, FAILED),
)
_BY_STATUS: Final[dict[Status, int]] = {
    "success": OK,
    "failed": FAILED,
    "timeout": TIMEOUT,
    "cancelled": CANCELLED,
}


def code_for(error: Exception) -> int:
    """The exit code for an error.

    >>> code_for(InvalidRequest("no messages"))
    2
    """
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), INTERNAL)


def code_for_status(status: Status) -> int:
    """The exit code for how a request ended."""
    return _BY_STATUS[status]
