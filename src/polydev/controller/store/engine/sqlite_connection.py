"""An aiosqlite connection with one thread hop per statement.

aiosqlite itself needs four hops per statement (cursor, execute, fetch, close), each of which wakes
two threads. That, not the database, was most of a query's cost. All rows are fetched at once, as
SQLAlchemy does anyway.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import aiosqlite

_CHUNK = 64


class SingleHopConnection(aiosqlite.Connection):
    """An aiosqlite connection whose cursors need one hop."""

    def cursor(self) -> SingleHopCursor:  # type: ignore[override]
        return SingleHopCursor(self)

    async def run_in_thread(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` in the connection's thread."""
        await self._execute(work, self._conn)  # type: ignore[no-untyped-call]


def connect(file: str, **options: Any) -> SingleHopConnection:
    """Return a connection that opens when awaited; its thread is a daemon."""
    connection = SingleHopConnection(lambda: sqlite3.connect(file, **options), _CHUNK)
    connection._thread.daemon = True
    return connection


class SingleHopCursor:
    """The part of an async cursor that SQLAlchemy needs.

    It holds the rows.
    """

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

        await self._connection.run_in_thread(work)
