"""T1 in the caller's own transaction, on whatever connection the caller has."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from pgnexus.db.queries import load
from pgnexus.errors import InvalidRequest, PgnexusError, UnsuitableDatabase

Rows = Sequence[Sequence[Any]]

_LIBRARIES = ("psycopg", "asyncpg", "sqlalchemy")
_AUTOCOMMIT = "connection: it is in autocommit, with no transaction to join; begin one around the enqueue"
_NOT_JOINABLE = {
    "25P01": _AUTOCOMMIT,
    "25P02": "connection: its transaction has failed; roll back before you enqueue in it",
}
_FORBIDDEN = "connection: its user may not enqueue here; grant pgnexus_caller to it"


class JoinedConnection:
    """A connection of psycopg (sync or async), asyncpg or SQLAlchemy (sync or async) with a transaction open."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        names = [base.__module__.split(".", 1)[0] for base in type(connection).__mro__]
        self._library = next((name for name in names if name in _LIBRARIES), "")
        if not self._library:
            raise InvalidRequest(
                f"connection: a {type(connection).__module__}.{type(connection).__qualname__} cannot be joined; "
                "use one of psycopg, asyncpg or SQLAlchemy, or call pgnexus.enqueue(jsonb[]) in it yourself"
            )

    @asynccontextmanager
    async def joined(self, home: str) -> AsyncIterator[None]:
        """Inside, `enqueue`; what fails there leaves the caller's transaction as it was.

        Raises `InvalidRequest` unless there is a healthy transaction to join, and `UnsuitableDatabase` unless
        it is in the database that this service uses, which ``home`` names.
        """
        self._check_open()
        try:
            # Fails in autocommit and in a failed transaction, whichever library speaks.
            await self._run("savepoint pgnexus")
        except Exception as error:
            raise refusal(error) from error
        try:
            await self._check_home(home)
            yield
            await self._run("release savepoint pgnexus")
        except Exception as error:
            with suppress(Exception):  # the connection may be gone; the first error says more
                await self._run("rollback to savepoint pgnexus")
                await self._run("release savepoint pgnexus")
            if _state(error) == "42501":
                raise UnsuitableDatabase(f"{_FORBIDDEN} ({_cause(error)})") from error
            raise refusal(error) from error

    async def enqueue(self, requests: list[str]) -> Rows:
        """Run T1 there; its NOTIFY goes out with the caller's commit."""
        return await self._run(load("enqueue"), {"requests": requests, "notify": True})

    def _check_open(self) -> None:
        connection = self._connection
        try:
            ended = (
                connection.is_closed() if self._library == "asyncpg" else getattr(connection, "closed", False)
            )
        except Exception:  # asyncpg's, of a connection that was given back to its pool
            ended = True
        if ended:
            raise InvalidRequest("connection: it is closed")
        if self._library == "psycopg" and connection.autocommit and connection.info.transaction_status == 0:
            raise InvalidRequest(_AUTOCOMMIT)  # known here, without asking

    async def _check_home(self, home: str) -> None:
        ours = home.split()[0]
        [[database, installed]] = await self._run(load("is_installed"))
        if not installed:
            raise UnsuitableDatabase(
                f"connection: its database {database!r} has no pgnexus; this service uses {ours!r}"
            )
        [[there]] = await self._run(load("home"))
        if there != home:
            raise UnsuitableDatabase(
                f"connection: its database is {database!r} of another installation, this service uses {ours!r}; "
                "a request can only join a transaction of its own database"
            )

    async def _run(self, query: str, params: dict[str, Any] | None = None) -> Rows:
        if self._library == "asyncpg":
            text, values = query, params or {}
            for place, name in enumerate(values, 1):
                text = text.replace(f"%({name})s", f"${place}")
            rows: Rows = await self._connection.fetch(text, *values.values())
            return rows
        if self._library == "sqlalchemy":
            import sqlalchemy  # noqa: PLC0415 - installed where such a connection comes from

            text = query.replace("%(requests)s", ":requests").replace("%(notify)s", ":notify")
            found = await _whole(self._connection.execute(sqlalchemy.text(text), params or {}))
            return found.fetchall() if found.returns_rows else []
        is_async = isinstance(self._connection, psycopg.AsyncConnection)
        # Not the connection's own kind of cursor, which may read other placeholders.
        kind: Any = psycopg.AsyncCursor if is_async else psycopg.Cursor
        cursor = kind(self._connection, row_factory=tuple_row)
        await _whole(cursor.execute(query, params))
        return await _whole(cursor.fetchall()) if cursor.description else []


async def _whole(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def refusal(error: Exception) -> Exception:
    """What the database refused, as `InvalidRequest`, whichever driver says it; other errors as they are."""
    state, cause = _state(error), _cause(error)
    if isinstance(error, PgnexusError):
        return error
    if state in ("PN001", "PN002") or state[:2] in ("22", "54"):  # also data that PostgreSQL cannot hold
        primary = getattr(getattr(cause, "diag", None), "message_primary", None)
        return InvalidRequest(primary or str(cause.__cause__ or cause))
    if state in _NOT_JOINABLE:
        return InvalidRequest(_NOT_JOINABLE[state])
    return error


def _cause(error: Exception) -> Exception:
    return getattr(error, "orig", None) or error  # SQLAlchemy wraps


def _state(error: Exception) -> str:
    cause = _cause(error)
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""
