"""T1 in the caller's own transaction: one statement on whatever connection the caller has."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgnexus.db.queries import load
from pgnexus.errors import InvalidRequest, PgnexusError, UnsuitableDatabase

Rows = Sequence[Sequence[Any]]


class JoinedConnection:
    """A connection of psycopg (sync or async), asyncpg or SQLAlchemy (sync or async) with a transaction open."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._library = type(connection).__module__.split(".", 1)[0]
        if self._library not in ("psycopg", "asyncpg", "sqlalchemy"):
            raise InvalidRequest(
                f"connection: a {type(connection).__module__}.{type(connection).__qualname__} cannot be joined; "
                "use one of psycopg, asyncpg or SQLAlchemy, or call pgnexus.enqueue(jsonb[]) in it yourself"
            )

    async def check(self, home: str) -> None:
        """Raise unless there is a healthy transaction to join, in the database that this service uses."""
        self._check_transaction()
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

    def _check_transaction(self) -> None:
        connection = self._connection
        if connection.closed if self._library == "psycopg" else getattr(connection, "is_closed", bool)():
            raise InvalidRequest("connection: it is closed")
        if self._library == "psycopg":
            status = connection.info.transaction_status
            if status == TransactionStatus.INERROR:
                raise InvalidRequest(
                    "connection: its transaction has failed; roll back before you enqueue in it"
                )
            joinable = status == TransactionStatus.INTRANS or not connection.autocommit
        elif self._library == "asyncpg":
            joinable = connection.is_in_transaction()
        else:  # SQLAlchemy begins by itself, unless it is told to commit each statement
            options: dict[str, Any] = getattr(connection, "get_execution_options", dict)()
            joinable = options.get("isolation_level") != "AUTOCOMMIT"
        if not joinable:
            raise InvalidRequest(
                "connection: it is in autocommit, with no transaction to join; begin one around the enqueue"
            )

    async def enqueue(self, requests: list[str]) -> Rows:
        """Run T1 there; its NOTIFY goes out with the caller's commit. Raises `InvalidRequest` as T1 does."""
        try:
            return await self._run(load("enqueue"), {"requests": requests, "notify": True})
        except Exception as error:
            raise refusal(error) from error

    async def _run(self, query: str, params: dict[str, Any] | None = None) -> Rows:
        if self._library == "asyncpg":
            text = query.replace("%(requests)s", "$1").replace("%(notify)s", "$2")
            rows: Rows = await self._connection.fetch(text, *(params or {}).values())
            return rows
        if self._library == "sqlalchemy":
            import sqlalchemy  # noqa: PLC0415 - installed where such a connection comes from

            text = query.replace("%(requests)s", ":requests").replace("%(notify)s", ":notify")
            cursor = self._connection.execute(sqlalchemy.text(text), params or {})
        else:
            cursor = self._connection.cursor(row_factory=tuple_row).execute(query, params)
        if inspect.isawaitable(cursor):
            cursor = await cursor
        fetched = cursor.fetchall()
        return (await fetched) if inspect.isawaitable(fetched) else fetched  # type: ignore[no-any-return]


def refusal(error: Exception) -> Exception:
    """What T1 refused, as `InvalidRequest`; other errors as they are. Understands every driver's form."""
    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if isinstance(error, PgnexusError) or state not in ("PN001", "PN002"):
        return error
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return InvalidRequest(primary or str(cause))
