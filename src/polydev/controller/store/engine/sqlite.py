"""SQLite: the file that a URL names, and how its transactions begin.

`database.py` asks for it when DATABASE_URL is unset or names a file. One controller uses a file at
a time, so nobody else can change what is in it, and nobody is a role: everyone sees everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from polydev.controller.store.engine.change_bus import ChangeBus
from polydev.controller.store.engine.sqlite_connection import connect
from polydev.shared.domain import UserId
from polydev.shared.errors import BadSettings

_BUSY_TIMEOUT_MS = 30_000
_WRITES = "polydev_writes"


class SqliteBackend:
    """One file. Writers take turns: each waits at its beginning, so that reading and then writing
    in one transaction cannot fail in the middle."""

    def __init__(self, file: Path) -> None:
        self.engine = _engine(file)
        self.changes = ChangeBus()

    def options(self, *, writes: bool, user: UserId | None) -> dict[str, Any]:
        return {_WRITES: writes}

    def owners_options(self) -> dict[str, Any]:
        return {_WRITES: True}

    async def prepare(self, connection: AsyncConnection) -> None:
        """Nothing: its transaction is alone already."""

    def translated(self, error: DBAPIError) -> Exception:
        return error


def database_file(url: sa.URL | None, controller_dir: Path) -> Path:
    """The file that a URL names by its whole path: where a program was started must not matter.

    Raises: BadSettings.
    """
    if url is None:
        return controller_dir / "polydev.db"
    file = Path(url.database or "")
    if not file.is_absolute():
        raise BadSettings(
            "DATABASE_URL does not name a file by its whole path",
            hint="Write it with four slashes: sqlite:////path/to/file.db",
        )
    return file


def _engine(file: Path) -> AsyncEngine:
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(file)),
        connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000, "async_creator_fn": connect},
    )
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin says
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
