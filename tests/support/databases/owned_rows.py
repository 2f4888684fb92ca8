"""Rows of two users in every table, and raw SQL as one of them.

The tests of row-level security cover all tables. Owners are found from the table definitions, so a
new table is covered automatically.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from postgres import Cluster
from psycopg import errors as refusals

from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.tables import metadata
from polydev.shared.domain import UserId, now

ANN, BEN = UserId("ann"), UserId("ben")
AT = now()
NO_RIGHT = str(refusals.InsufficientPrivilege.sqlstate)

Raw = psycopg.AsyncConnection[tuple[Any, ...]]
Acting = Callable[[], AbstractAsyncContextManager[Raw]]


def owner_of(table: sa.Table) -> str | None:
    """Return SQL for a row's owner; None for tables without owners."""
    if table.name == "users":
        return "id"
    for name in ("user_id", "owner"):
        if name in table.c:
            return name
    for key in table.foreign_keys:
        if owner_of(key.column.table) is not None:
            there = key.column
            owner = owner_of(there.table)
            mine = f"{table.name}.{key.parent.name}"
            return f"(SELECT {owner} FROM {there.table} t WHERE t.{there.name} = {mine})"
    return None


TABLES = {table.name: table for table in metadata.sorted_tables}
OWNED = [name for name, table in TABLES.items() if owner_of(table) is not None]
UNOWNED = [name for name in TABLES if name not in OWNED]


_TEXTS = {
    "status": "running",
    "titled_by": "person",
    "kind": "login",
    "role": "person",
    "vm_type": "cli",
    "scopes": "read",
    "validity": "valid",
    "woke_how": "resumed",
}


def value_of(column: sa.Column[Any], user: UserId) -> Any:
    """Return a value for a column; texts contain the column's name."""
    if column.name in ("user_id", "owner") or (column.table.name, column.name) == ("users", "id"):
        return user
    if isinstance(column.type, sa.Text):
        return _TEXTS.get(column.name, f"{user}-{column.name}")
    if column.identity is not None:
        return None
    known = {sa.Integer: 1, sa.BigInteger: 1, sa.Float: 1.0, sa.JSON: {}, sa.Boolean: True}
    return known.get(type(column.type), AT)


def row_of(table: sa.Table, user: UserId) -> dict[str, Any]:
    values = {column.name: value_of(column, user) for column in table.c}
    return {name: value for name, value in values.items() if value is not None}


async def fill(url: str) -> None:
    """Insert a row of each user into every table."""
    database = open_database(url, Path("/nonexistent"))
    async with database.write() as connection:
        for table in metadata.sorted_tables:
            for user in (ANN, BEN):
                await connection.execute(sa.insert(table).values(**row_of(table, user)))
    await database.close()


def as_user(database: Database) -> Acting:
    """Act as Ben in Polydev's role for users; roll everything back."""

    @asynccontextmanager
    async def acting() -> AsyncIterator[Raw]:
        async with database.write(BEN) as connection:
            raw = await connection.get_raw_connection()
            yield typing.cast(Raw, raw.driver_connection)
            await connection.rollback()

    return acting


def as_claimed(postgres: Cluster, url: str) -> Acting:
    """Act as Ben in a role with all rights, by a Supabase token."""
    with postgres.superuser(url) as connection:
        if connection.execute("SELECT to_regrole('authenticated')").fetchone() == (None,):
            connection.execute("CREATE ROLE authenticated NOLOGIN")
            connection.execute("GRANT authenticated TO polydev_app")
        connection.execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO authenticated"
        )

    @asynccontextmanager
    async def acting() -> AsyncIterator[Raw]:
        async with await psycopg.AsyncConnection.connect(url) as raw:
            await raw.execute("SET LOCAL ROLE authenticated")
            await raw.execute("SELECT set_config('request.jwt.claims', '{\"sub\": \"ben\"}', true)")
            yield raw
            await raw.rollback()

    return acting


async def rows_of_others(raw: Raw) -> dict[str, list[str]]:
    """Return all rows that are not Ben's; switches to the worker role."""
    await raw.execute("SET LOCAL ROLE polydev_worker")
    found = {}
    for name, table in TABLES.items():
        owner = owner_of(table)
        condition = "" if owner is None else f" WHERE {owner} IS DISTINCT FROM 'ben'"
        rows = await raw.execute(f"SELECT * FROM {name}{condition}".encode())
        found[name] = sorted(map(repr, await rows.fetchall()))
    return found


async def try_statement(raw: Raw, statement: str, *values: Any) -> list[Any] | int | str:
    """Run a statement; return its rows, its row count, or its error."""
    try:
        async with raw.transaction():
            cursor = await raw.execute(statement.encode(), values)
            return await cursor.fetchall() if cursor.description else cursor.rowcount
    except psycopg.Error as error:
        return f"{error.sqlstate} {str(error).splitlines()[0]}"


def was_refused(outcome: object) -> bool:
    return isinstance(outcome, str) and outcome.startswith(NO_RIGHT)


async def readable_columns(raw: Raw, name: str) -> str:
    """Return the columns that the current role may read."""
    query = "SELECT has_column_privilege(%s, %s, 'SELECT')"
    columns = [column.name for column in TABLES[name].c]
    may = [it for it in columns if await try_statement(raw, query, name, it) == [(True,)]]
    return ", ".join(f'"{it}"' for it in may or columns)


async def copy_out(raw: Raw, what: str) -> str:
    try:
        async with (
            raw.transaction(),
            raw.cursor() as cursor,
            cursor.copy(f"COPY {what} TO STDOUT".encode()) as copy,
        ):
            return "".join([bytes(part).decode() async for part in copy])
    except psycopg.Error as error:
        return f"{error.sqlstate} {error}"
