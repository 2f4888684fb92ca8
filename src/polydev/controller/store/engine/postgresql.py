"""PostgreSQL backend: connections, roles of transactions, and errors.

The login of DATABASE_URL owns the tables and is a member of two roles, `polydev_worker` and
`polydev_person`. Each transaction sets one of them locally, so nothing is left when the connection
returns to the pool. The migrations define what the roles may do.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from polydev.controller.store.engine.change_bus import ChangeBus
from polydev.controller.store.engine.locks import lock_id
from polydev.controller.store.engine.pg_notify import PgChangeBus, first_line
from polydev.controller.store.engine.roles import USER, WORKER, ensure_roles
from polydev.shared.domain import UserId
from polydev.shared.errors import BadRequest, BadSettings, DatabaseUnavailable
from polydev.shared.hints import Hint

_ROLE, _USER, _READS = "polydev_role", "polydev_person", "polydev_reads"
_POOL_SIZE = 10
_MAX_OVERFLOW = 10
_RECYCLE_S = 1800
_STATEMENT_TIMEOUT = "30s"
_LOCK_TIMEOUT = "20s"
_IDLE_TIMEOUT = "60s"

_CONNECT = {
    "application_name": "polydev",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}

_SET_ROLE = (
    "SELECT set_config('role', %s, true), set_config('polydev.user_id', %s, true),"
    f" set_config('statement_timeout', '{_STATEMENT_TIMEOUT}', true),"
    f" set_config('lock_timeout', '{_LOCK_TIMEOUT}', true),"
    f" set_config('idle_in_transaction_session_timeout', '{_IDLE_TIMEOUT}', true)"
)
_SET_OWNER = (
    "SELECT set_config('role', 'none', true), set_config('polydev.user_id', '', true),"
    " set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"
)


class PostgresqlBackend:
    """A database on a server, shared by any number of controllers."""

    def __init__(self, url: sa.URL) -> None:
        """Raises: BadSettings."""
        if not url.database:
            raise BadSettings(
                "DATABASE_URL names no database",
                hint="Append its name: postgresql://user@server/polydev",
            )
        self._url = url
        self.engine = _engine(url)
        _, parameters = self.engine.dialect.create_connect_args(url)
        self.changes: ChangeBus = PgChangeBus({**_CONNECT, **parameters})

    def options(self, *, writes: bool, user: UserId | None) -> dict[str, Any]:
        if user is not None and not user:
            raise ValueError("empty user id")
        role = WORKER if user is None else USER
        return {_ROLE: role, _USER: user or "", _READS: not writes}

    def owner_options(self) -> dict[str, Any]:
        return {_ROLE: None, _READS: False}

    async def prepare_migration(self, connection: AsyncConnection) -> None:
        number = lock_id("migrations")
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
        await connection.run_sync(ensure_roles)

    def translate_error(self, error: DBAPIError) -> Exception:
        cause = error.orig
        message = first_line(cause or error)
        if isinstance(cause, psycopg.DataError) and "NUL (0x00)" in message:
            return BadRequest("A text contains a NUL character")
        if isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None:
            return self._cannot_connect(message)
        ended = psycopg.errors.IdleInTransactionSessionTimeout  # not an OperationalError in psycopg
        if isinstance(cause, (psycopg.OperationalError, ended)):
            return DatabaseUnavailable(f"PostgreSQL failed: {message}", hint="Try again")
        return error

    def _cannot_connect(self, message: str) -> Exception:
        """Return the error for a failed or broken connection."""
        login, server = self._url.username, f"{self._url.host or 'its socket'}"
        if "authentication failed" in message or "no password supplied" in message:
            return BadSettings(
                f"PostgreSQL at {server} rejects user {login} and password of DATABASE_URL"
            )
        if re.search(r'database ".*" does not exist', message):
            return BadSettings(
                f"PostgreSQL at {server} has no database {self._url.database}",
                hint=f"Have an administrator of that server run: "
                f'CREATE DATABASE "{self._url.database}" OWNER "{login}";',
            )
        return DatabaseUnavailable(
            f"PostgreSQL at {server} is unavailable: {message}",
            hint=Hint.CHECK_DATABASE_URL.text(),
        )


def _engine(url: sa.URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        connect_args={name: value for name, value in _CONNECT.items() if name not in url.query},
        pool_size=_POOL_SIZE,
        max_overflow=_MAX_OVERFLOW,
        pool_recycle=_RECYCLE_S,
    )
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _begin(connection: sa.Connection) -> None:
    """Set isolation, access mode and role of the transaction.

    Every transaction sets all of them, whatever the connection did before: a cancelled one can
    leave it half-configured. (SQLAlchemy would set them for reads only, and reset them after.)
    """
    options = connection.get_execution_options()
    raw: Any = connection.connection.dbapi_connection
    dialect: Any = connection.dialect
    dialect.set_isolation_level(raw, "REPEATABLE READ" if options[_READS] else "READ COMMITTED")
    dialect.set_readonly(raw, options[_READS])
    role = options[_ROLE]
    if role is None:
        connection.exec_driver_sql(_SET_OWNER)
    else:
        connection.exec_driver_sql(_SET_ROLE, (role, options[_USER]))
