"""Open the database, run transactions and migrations, and signal changes.

`bootstrap.py` opens it once; all others get a `Database` or a connection. Only this module knows
`sqlite.py` and `postgresql.py`, which hold the differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
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
    """Operations that differ between SQLite and PostgreSQL."""

    engine: AsyncEngine
    changes: ChangeBus

    def options(self, *, writes: bool, user: UserId | None) -> dict[str, Any]:
        """Return execution options of a transaction, read when it begins."""

    def owner_options(self) -> dict[str, Any]:
        """Return the options for migrations, which act as the tables' owner."""

    async def prepare_migration(self, connection: AsyncConnection) -> None:
        """Wait for other migrations, and create roles. Raises BadSettings."""

    def translate_error(self, error: DBAPIError) -> Exception:
        """Return a Polydev error if the failure is not the statement's own."""


class Database:
    """Read and write transactions, and change notifications."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @asynccontextmanager
    async def read(self, user: UserId | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a read transaction, which sees one snapshot; writes are not committed.

        With a user, it sees only that user's rows (PostgreSQL: row-level security). Without one, it
        sees all rows. Raises: DatabaseUnavailable.
        """
        async with self._transaction(self._backend.options(writes=False, user=user)) as connection:
            yield connection

    @asynccontextmanager
    async def write(self, user: UserId | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a write transaction; commit, or roll back on an exception.

        `user` and errors as in `read`.

        On SQLite it waits for its turn at the start, so a read followed by a write cannot fail
        half-way. On PostgreSQL others write concurrently: take a lock (`locks.acquire`) before a
        read that a later write depends on.
        """
        async with self._transaction(self._backend.options(writes=True, user=user)) as connection:
            yield connection
            await event_outbox.write_emitted(connection)
            await connection.commit()
        self._backend.changes.publish()

    def next_change(self) -> asyncio.Event:
        """Return an event for the next commit of any controller.

        Take the event first, then read, then wait for it: so no change is missed.
        """
        return self._backend.changes.next_change()

    async def upgrade(self) -> tuple[str | None, str | None]:
        """Run missing migrations; return the revision before and after.

        Raises: BadSettings, DatabaseUnavailable.
        """
        async with self._transaction(self._backend.owner_options()) as connection:
            await self._backend.prepare_migration(connection)
            was = await schema_version.current_revision(connection)
            if was != schema_version.NEWEST:
                schema_version.require_known(was)
                from polydev.controller.store.engine import (
                    alembic_runner,  # slow to import, and seldom needed
                )

                await connection.run_sync(alembic_runner.upgrade)
                await connection.commit()
        return was, schema_version.NEWEST

    async def close(self) -> None:
        await self._backend.changes.close()
        await self._backend.engine.dispose()

    @asynccontextmanager
    async def _transaction(self, options: dict[str, Any]) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that is rolled back unless it is committed."""
        try:
            async with AsyncExitStack() as stack:
                yield await self._begin(stack, options)
        except DBAPIError as error:
            translated = self._backend.translate_error(error)
            if translated is error:
                raise
            raise translated from error
        except PoolTimeout:
            raise DatabaseUnavailable("All database connections are in use") from None

    async def _begin(self, stack: AsyncExitStack, options: dict[str, Any]) -> AsyncConnection:
        """Begin on a pooled connection.

        Retry on a new one if the server was gone.
        """
        try:
            return await self._begin_once(stack, options)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return await self._begin_once(stack, options)

    async def _begin_once(self, stack: AsyncExitStack, options: dict[str, Any]) -> AsyncConnection:
        connection = await stack.enter_async_context(self._backend.engine.connect())
        await connection.execution_options(**options)
        await connection.begin()
        return connection


def open_database(url: str | None, controller_dir: Path) -> Database:
    """Return the database of DATABASE_URL, or SQLite in the controller's folder.

    Raises: BadSettings for an unsupported or malformed URL.
    """
    parsed = _parse_url(url)
    if parsed is not None and parsed.get_backend_name() == "postgresql":
        return Database(PostgresqlBackend(parsed))
    return Database(SqliteBackend(database_file(parsed, controller_dir)))


def sqlite_folder(url: str | None, controller_dir: Path) -> Path | None:
    """Return the SQLite file's folder, which controllers must not share; None: PostgreSQL.

    Raises: BadSettings.
    """
    parsed = _parse_url(url)
    if parsed is not None and parsed.get_backend_name() == "postgresql":
        return None
    return database_file(parsed, controller_dir).parent.resolve()


async def migrate(url: str | None, controller_dir: Path) -> tuple[str | None, str | None]:
    """Open, upgrade and close the database, for `polydev db migrate`."""
    if sqlite_folder(url, controller_dir) is not None:
        await asyncio.to_thread(controller_dir.mkdir, 0o700, True, True)
    database = open_database(url, controller_dir)
    try:
        return await database.upgrade()
    finally:
        await database.close()


def _parse_url(url: str | None) -> sa.URL | None:
    """Parse the URL and set our driver. Raises: BadSettings."""
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
        f"DATABASE_URL names a {parsed.drivername} database, which Polydev does not support",
        hint=_URL_HINT,
    )
