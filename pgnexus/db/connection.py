"""Under every step of a request: one way to connect to PostgreSQL, and the map of what can go wrong."""

from __future__ import annotations

import asyncio
import math
import os
import select
import socket
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row
from psycopg.types.array import ListBinaryDumper
from psycopg.types.json import set_json_loads

from pgnexus.errors import DatabaseUnavailable, InvalidSettings
from pgnexus.printable import one_line
from pgnexus.settings import redact
from pgnexus.storable import parse

Connection = AsyncConnection[Any]

# A peer that is gone is noticed by the kernel; what the URL says is stronger.
_TCP = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}

# What the driver says without a word from the server: the wire broke. So it did when a statement had more results than
# there can be: a server that is told to leave may send its farewell behind the result of a COMMIT.
_FROM_THE_DRIVER = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
# SQLSTATE classes and codes after which the same statement may succeed when it is sent again.
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "58"})
_UNAVAILABLE = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25006", "25P03", "25P04"})
# What the data of a statement can be at fault for: data exceptions, constraints, limits (too deep, too long), and
# what functions raise, ours included. A missing grant or function (42) is none: the next statement would miss it, too.
_DATA_FAULT_CLASSES = frozenset({"22", "23", "54", "P0", "PN", "XX"})


def _load_json(data: bytes | str) -> Any:
    """The parsed value; what is nested too deep to parse stays text, so that one row spoils no others."""
    try:
        return parse(data)
    except ValueError:
        return data if isinstance(data, str) else data.decode("utf-8", "replace")


def _adapters() -> AdaptersMap:
    adapters = AdaptersMap(psycopg.adapters)
    set_json_loads(_load_json, adapters)
    # The text form of an array escapes every quote of every JSON text in it, which was a seventh of a busy worker.
    adapters.register_dumper(list, ListBinaryDumper)
    return adapters


_ADAPTERS = _adapters()


def read_url(url: str) -> dict[str, Any]:
    """The connection parameters of a URL; `InvalidSettings` when it is none, without its text."""
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        raise InvalidSettings(
            f"{display(url)} is not a PostgreSQL URL (postgresql://user:password@host:5432/database)"
        ) from None


def display(url: str) -> str:
    """The URL, or key=value string, without its password, for errors and logs."""
    if "://" in url:
        return redact(url)
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "the database URL"
    return make_conninfo(
        "", **{key: value for key, value in parameters.items() if not key.endswith("password")}
    )


async def connect(url: str, *, timeout: float, application_name: str = "pgnexus") -> Connection:
    """A connection in autocommit whose rows are namedtuples; `DatabaseUnavailable` naming URL and cause.

    Nothing here depends on session state or startup options, so that a pooler in transaction mode
    may stand between: no prepared statements, and READ COMMITTED is asked for with each BEGIN.
    """
    given = read_url(url)
    parameters = {**_TCP, "application_name": application_name, **given, "client_encoding": "UTF8"}
    for_each = parameters["connect_timeout"] = max(
        2, math.ceil(timeout)
    )  # libpq takes no less, and whole seconds
    hosts = str(given.get("host") or "").count(",") + 1
    try:
        async with asyncio.timeout(timeout if hosts == 1 else for_each * hosts):
            connection = await AsyncConnection.connect(
                make_conninfo("", **parameters),
                autocommit=True,
                prepare_threshold=None,
                context=_ADAPTERS,
                row_factory=namedtuple_row,
            )
    except TimeoutError:
        raise DatabaseUnavailable(f"{display(url)}: no answer within {timeout:g} s") from None
    except (psycopg.Error, OSError) as error:
        raise DatabaseUnavailable(f"{display(url)}: {_one_line(error)}") from error
    await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
    return connection


def connect_blocking(url: str, *, timeout: float, application_name: str) -> psycopg.Connection[Any]:
    """`connect` for a thread of its own, with rows as tuples; raises psycopg's errors."""
    parameters = {**_TCP, "application_name": application_name, **read_url(url), "client_encoding": "UTF8"}
    parameters["connect_timeout"] = max(2, math.ceil(timeout))
    connection: psycopg.Connection[Any] = psycopg.connect(
        make_conninfo("", **parameters), autocommit=True, prepare_threshold=None
    )
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    return connection


def went_away(connection: Connection) -> bool:
    """Whether an idle connection has ended: a server has nothing to say to one unless it leaves."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def sever(connection: Connection | psycopg.Connection[Any]) -> None:
    """Cut the wire, so that whoever waits on it gets an error now; cancelling would ask the hung peer."""
    if connection.closed:
        return
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def unavailable(error: psycopg.Error, url: str) -> DatabaseUnavailable | None:
    """The error of ours when ``error`` means that the server is not there for us now, else None.

    A full disk (53100) and a primary that became a standby (25006) count: both pass.
    """
    state = error.sqlstate
    if state is None:
        lost = isinstance(error, _FROM_THE_DRIVER)
    else:
        lost = state in _UNAVAILABLE or state[:2] in _UNAVAILABLE_CLASSES
    return DatabaseUnavailable(f"{display(url)}: {_one_line(error)}") if lost else None


def is_data_fault(error: Exception) -> bool:
    """Whether the data of a statement is at fault, so that it would fail again, alone or with others."""
    if isinstance(error, psycopg.Error):
        state = error.sqlstate
        if state is None:  # found by the driver, before the server saw it
            return not isinstance(error, _FROM_THE_DRIVER)
        return state[:2] in _DATA_FAULT_CLASSES
    return isinstance(error, (ValueError, TypeError, ArithmeticError))


def _one_line(error: Exception) -> str:
    return one_line(error) or type(error).__name__
