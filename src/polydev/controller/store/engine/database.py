"""Opening the database: transactions, migrations, word of changes.

`app.py` opens it once; everything else is handed a `Database` or a connection. What differs between
the databases is in `sqlite.py` and `postgresql.py`, which only this module knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoneFree
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from polydev.controller.store.engine import event_outbox, schema_version
from polydev.controller.store.engine.change_bus import ChangeBus
from polydev.controller.store.engine.postgresql import PostgresqlBackend
from polydev.controller.store.engine.sqlite import SqliteBackend, database_file
from polydev.shared.domain import UserId
from polydev.shared.errors import BadSettings, DatabaseUnavailable

_URL_HINT = (
    "Leave it unset, or set it to sqlite:////path/to/file.db or postgresql://user@server/database"
)


class Backend(Protocol):
    """What each database does in its own way."""

    engine: AsyncEngine
    changes: ChangeBus

    def options(self, *, writes: bool, user: UserId | None) -> dict[str, Any]:
        """Execution options of a transaction: the kind reads them where the transaction begins."""

    def owners_options(self) -> dict[str, Any]:
        """Those of whoever makes and changes tables."""

    async def prepare(self, connection: AsyncConnection) -> None:
        """Wait for whoever else migrates, and see to what the tables need. Raises BadSettings."""

    def translated(self, error: DBAPIError) -> Exception:
        """The same as one of errors.py, if it is not about what the caller asked for."""


class Database:
    """Its two kinds of transaction, and word of changes."""

    def __init__(self, kind: Backend) -> None:
        self._kind = kind

    @asynccontextmanager
    async def read(self, user: UserId | None = None) -> AsyncIterator[AsyncConnection]:
        """A connection that sees one state of the database; what it writes is not kept.

        For a person it sees what is theirs alone (PostgreSQL: row-level security); without one it
        is a worker's, which sees everything. Raises: DatabaseUnavailable.
        """
        async with self._begun(self._kind.options(writes=False, user=user)) as connection:
            yield connection

    @asynccontextmanager
    async def write(self, user: UserId | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at its end, undone if anything is raised in it.

        `person`, and what it raises, as in `read`.

        On SQLite it waits for its turn at the start, so that reading and then writing in one
        transaction cannot fail in the middle. On PostgreSQL others write at the same time: who
        reads, and then writes what depends on it, takes a lock first (`locks.hold`).
        """
        async with self._begun(self._kind.options(writes=True, user=user)) as connection:
            yield connection
            await event_outbox.write_emitted(connection)
            await connection.commit()
        self._kind.changes.tell()

    def next_change(self) -> asyncio.Event:
        """Set when any controller commits its next write. Take it, read, and then wait for it: so
        no change goes unnoticed, and nobody has to look again and again."""
        return self._kind.changes.next()

    async def upgrade(self) -> tuple[str | None, str | None]:
        """Bring the tables to this version's shape; which migration they were at, and are at.

        Raises: BadSettings, DatabaseUnavailable.
        """
        async with self._begun(self._kind.owners_options()) as connection:
            await self._kind.prepare(connection)
            was = await schema_version.current_revision(connection)
            if was != schema_version.NEWEST:
                schema_version.require_known(was)
                from polydev.controller.store.engine import (
                    alembic_runner,  # Alembic is large, and seldom needed
                )

                await connection.run_sync(alembic_runner.upgrade)
                await connection.commit()
        return was, schema_version.NEWEST

    async def close(self) -> None:
        await self._kind.changes.close()
        await self._kind.engine.dispose()

    @asynccontextmanager
    async def _begun(self, options: dict[str, Any]) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction, which is undone unless it is committed."""
        try:
            async with AsyncExitStack() as held:
                yield await self._begin(held, options)
        except DBAPIError as error:
            translated = self._kind.translated(error)
            if translated is error:
                raise
            raise translated from error
        except NoneFree:
            raise DatabaseUnavailable("All connections to the database are in use") from None

    async def _begin(self, held: AsyncExitStack, options: dict[str, Any]) -> AsyncConnection:
        """Begin over a kept connection; once more over a new one if the server had gone away."""
        try:
            return await self._begin_once(held, options)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return await self._begin_once(held, options)

    async def _begin_once(self, held: AsyncExitStack, options: dict[str, Any]) -> AsyncConnection:
        connection = await held.enter_async_context(self._kind.engine.connect())
        await connection.execution_options(**options)
        await connection.begin()
        return connection


def open_database(url: str | None, controller_dir: Path) -> Database:
    """The database that DATABASE_URL names, or SQLite in the controller's folder.

    Raises: BadSettings if the URL is of another database or cannot be read.
    """
    parsed = _parse_url(url)
    if parsed is not None and parsed.get_backend_name() == "postgresql":
        return Database(PostgresqlBackend(parsed))
    return Database(SqliteBackend(database_file(parsed, controller_dir)))


def sqlite_folder(url: str | None, controller_dir: Path) -> Path | None:
    """Where the SQLite file lies: two controllers must not share it. None: it is no file.

    Raises: BadSettings.
    """
    parsed = _parse_url(url)
    if parsed is not None and parsed.get_backend_name() == "postgresql":
        return None
    return database_file(parsed, controller_dir).parent.resolve()


async def migrate(url: str | None, controller_dir: Path) -> tuple[str | None, str | None]:
    """Open, upgrade and close: what `polydev db migrate` does."""
    if sqlite_folder(url, controller_dir) is not None:
        await asyncio.to_thread(controller_dir.mkdir, 0o700, True, True)
    database = open_database(url, controller_dir)
    try:
        return await database.upgrade()
    finally:
        await database.close()


def _parse_url(url: str | None) -> sa.URL | None:
    """The URL with the driver that we use. Raises: BadSettings."""
    if url is None:
        return None
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise BadSettings("DATABASE_URL is not a database URL", hint=_URL_HINT) from None
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+aiosqlite"):
        return parsed
    raise BadSettings(
        f"DATABASE_URL names a {parsed.drivername} database, which Polydev cannot use",
        hint=_URL_HINT,
    )
