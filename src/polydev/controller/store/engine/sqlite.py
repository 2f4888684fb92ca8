"""SQLite backend: the file, and how transactions begin.

Only one controller uses a file at a time. There are no roles: every transaction sees all rows.
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
    """A database file. Writers take turns.

    Each writer waits at its start, so that a read followed by a write cannot fail half-way.
    """

    def __init__(self, file: Path) -> None:
        self.engine = _engine(file)
        self.changes = ChangeBus()

    def options(self, *, writes: bool, user: UserId | None) -> dict[str, Any]:
        return {_WRITES: writes}

    def owner_options(self) -> dict[str, Any]:
        return {_WRITES: True}

    async def prepare_migration(self, connection: AsyncConnection) -> None:
        """Do nothing: its transaction excludes others already."""

    def translate_error(self, error: DBAPIError) -> Exception:
        return error


def database_file(url: sa.URL | None, controller_dir: Path) -> Path:
    """Return the file of a URL, which must be an absolute path.

    Raises: BadSettings.
    """
    if url is None:
        return controller_dir / "polydev.db"
    file = Path(url.database or "")
    if not file.is_absolute():
        raise BadSettings(
            "DATABASE_URL needs an absolute path",
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
