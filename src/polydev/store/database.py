"""Opening the database: engine, transactions, migrations.

`app.py` opens it once; everything else is handed a `Database` or a connection. This module alone
knows which database it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from polydev.domain import PersonId
from polydev.errors import BadSettings

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 30_000
_URL_HINT = "Leave it unset, or set it to sqlite:////path/to/file.db"


class Database:
    """The engine and its two kinds of transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._reading = engine
        self._writing = engine.execution_options(polydev_writes=True)
        self._change = asyncio.Event()

    @asynccontextmanager
    async def read(self, person: PersonId | None = None) -> AsyncIterator[AsyncConnection]:
        """A connection that sees one state of the database; what it writes is not kept.

        For a person it sees what is theirs alone (PostgreSQL: row-level security); without one it
        is a worker's, which sees everything.
        """
        async with self._reading.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self, person: PersonId | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at its end, undone if anything is raised in it.

        `person` as in `read`.

        On SQLite it waits for its turn at the start, so that reading and then writing in one
        transaction cannot fail in the middle.
        """
        async with self._writing.begin() as connection:
            yield connection
        self._change.set()
        self._change = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """Set when this process commits its next write. Take it, read, and then wait for it: so no
        change goes unnoticed, and nobody has to look again and again."""
        return self._change

    async def upgrade(self) -> None:
        """Bring the tables to this version's shape."""
        async with self._writing.begin() as connection:
            await connection.run_sync(_upgrade)

    async def close(self) -> None:
        await self._reading.dispose()


def open_database(url: str | None, controller_dir: Path) -> Database:
    """The database that DATABASE_URL names, or SQLite in the controller's folder.

    Raises: BadSettings if the URL is of another database or cannot be read.
    """
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(_sqlite_file(url, controller_dir))),
        connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000},
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Database(engine)


def sqlite_folder(url: str | None, controller_dir: Path) -> Path:
    """Where the SQLite file lies: two controllers must not share it. Raises: BadSettings."""
    return _sqlite_file(url, controller_dir).parent.resolve()


def _sqlite_file(url: str | None, controller_dir: Path) -> Path:
    """The file that a URL names by its whole path: where a program was started must not matter."""
    if url is None:
        return controller_dir / "polydev.db"
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise BadSettings("DATABASE_URL is not a database URL", hint=_URL_HINT) from None
    if parsed.get_backend_name() != "sqlite":
        raise BadSettings(
            f"DATABASE_URL names a {parsed.get_backend_name()} database that this version cannot "
            "use",
            hint=_URL_HINT,
        )
    file = Path(parsed.database or "")
    if not file.is_absolute():
        raise BadSettings("DATABASE_URL does not name a file by its whole path", hint=_URL_HINT)
    return file


async def migrate(url: str | None, controller_dir: Path) -> None:
    """Open, upgrade and close: what `polydev db migrate` does."""
    await asyncio.to_thread(controller_dir.mkdir, 0o700, True, True)
    database = open_database(url, controller_dir)
    try:
        await database.upgrade()
    finally:
        await database.close()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("polydev_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
