"""A connection to SQLite that carries a statement out in one visit to its thread.

`sqlite.py` has SQLAlchemy use it. aiosqlite visits the connection's thread four times for a
statement (make a cursor, execute, fetch, close), and each visit wakes two threads: that, not the
database, was most of what a query cost. All rows are fetched at once, as SQLAlchemy does anyway.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import aiosqlite

_CHUNK = 64


class SingleHopConnection(aiosqlite.Connection):
    """An aiosqlite connection with cursors of one visit."""

    def cursor(self) -> SingleHopCursor:  # type: ignore[override]
        return SingleHopCursor(self)

    async def visit(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Have the connection's thread do some work."""
        await self._execute(work, self._conn)  # type: ignore[no-untyped-call]


def connect(file: str, **options: Any) -> SingleHopConnection:
    """A connection that opens when it is awaited. Its thread does not keep the process alive."""
    connection = SingleHopConnection(lambda: sqlite3.connect(file, **options), _CHUNK)
    connection._thread.daemon = True
    return connection


class SingleHopCursor:
    """What SQLAlchemy needs of an asynchronous cursor; rows of the last statement are in it."""

    def __init__(self, connection: SingleHopConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.lastrowid: int | None = None
        self.rowcount = -1
        self.arraysize = 1

    async def __aenter__(self) -> SingleHopCursor:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        await self._do(lambda cursor: cursor.execute(statement, parameters))

    async def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        await self._do(lambda cursor: cursor.executemany(statement, parameters))

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._rows = []

    async def _do(self, statement: Callable[[sqlite3.Cursor], object]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            cursor = connection.cursor()
            try:
                statement(cursor)
                self._rows = cursor.fetchall() if cursor.description else []
                self.description = cursor.description
                self.lastrowid, self.rowcount = cursor.lastrowid, cursor.rowcount
            finally:
                cursor.close()

        await self._connection.visit(work)
