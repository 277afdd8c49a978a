"""Under every verb: the exit codes that scripts can rely on, and the one for each error.

0    it worked
1    the request failed; `batch`, `cancel`: some did, or OUT cannot be written; `doctor`: something is to be mended
2    wrong usage, settings or request; nothing was stored
3    the database: not there, without its schema, or unsuitable
4    no result in time: the request's deadline passed, or the wait is over and the request goes on
5    the request was cancelled
6    no such request
70   a fault in pgnexus itself
130  interrupted by Ctrl-C or SIGTERM; what was accepted stays accepted
"""

from __future__ import annotations

from typing import Final

from pgnexus.cli.batch_files import UnwritableOutput
from pgnexus.errors import (
    DatabaseError,
    InvalidRequest,
    InvalidSettings,
    RequestCancelled,
    RequestError,
    RequestTimeout,
    ResultPending,
    UnknownRequest,
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
    (DatabaseError, DATABASE),
    (RequestTimeout, TIMEOUT),
    (ResultPending, TIMEOUT),
    (RequestCancelled, CANCELLED),
    (UnknownRequest, UNKNOWN),
    (RequestError, FAILED),
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
